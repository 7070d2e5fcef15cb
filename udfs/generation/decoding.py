"""Continuous batching: a decoder writes many answers at once, and an answer that ends makes room for the next prompt.

A step runs one new token of every sequence that is being written, with drafts of the next ones where these pay, and as
many tokens of prompts as it has room for, in one packed row. So a long prompt holds nobody up, and the weights are read
once for all. On a GPU, where steps without prompts are recorded and cost far less, only some steps read prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from udfs.generation.cache import Arena, Slot, capacity_of
from udfs.generation.drafting import Draft, Drafter
from udfs.generation.graphs import Graphs
from udfs.generation.picking import Picker
from udfs.generation.prefixes import BLOCK, Prefixes, hash_blocks
from udfs.generation.room import Room
from udfs.generation.sequences import Sequence
from udfs.generation.step import MOST_TOGETHER, Pieces, Step
from udfs.model.positions import NO_TURN, Turn
from udfs.wire.written import LENGTH, STOP

_STEPS_UNREAD = 8  # so many recorded steps, for which prompts wait, to one that reads them
_KEPT = 16  # sequences that have ended and stay in the cache, for prompts that begin as they do
_LEAST_ROOM = 64  # tokens of an answer that a slot begins with, at least
_TYPICAL = 1.25  # times the mean answer
_ANSWERS = 64  # whose lengths are remembered, about
_STEPS_WITHOUT_DRAFTS = 256  # after memory has run out


@dataclass(eq=False)
class _Active:
    """A sequence in the cache.

    Args:
        sequence: What is written.
        slot: Where its keys and values are.
        read: What is read before the next token is written: the prompt, or all of a text that is read again.
        past: Tokens of it that are there.
        begun: It has been looked at for a prefix that another has.
        awaited: The sequence that it has waited for.
        hashes: Of the blocks of what is read.
        draft: What it may go on with; None until it is written, or where there are no drafts.
        settled: Its slot has room for the longest answer, and stays its own.
    """

    sequence: Sequence
    slot: Slot
    read: np.ndarray
    past: int = 0
    begun: bool = False
    awaited: _Active | None = None
    hashes: list[int] = field(default_factory=list)
    draft: Draft | None = None
    settled: bool = False

    @property
    def longest(self) -> int:
        """Tokens of prompt and longest answer."""
        return len(self.sequence.prompt) + self.sequence.way.options.max_new_tokens

    @property
    def unread(self) -> int:
        """Tokens that are to be run before it is written."""
        return max(0, len(self.read) - self.past)

    def read_again(self) -> None:
        """Begin anew, with what is written so far."""
        self.read, self.past = np.concatenate([self.sequence.prompt, np.array(self.sequence.ids, dtype=np.int32)]), 0


@dataclass(frozen=True)
class _Plan:
    """What a step runs.

    Args:
        writing: Sequences of which the last token is run, and their drafts after it.
        drafts: Of each; None where there are none at all.
        reading: Sequences of which a part of what is read is run.
        counts: So many tokens of each of those.
    """

    writing: list[_Active]
    drafts: list[list[int]] | None
    reading: list[_Active]
    counts: list[int]

    @property
    def drafted(self) -> int:
        return sum(map(len, self.drafts)) if self.drafts else 0


class Decoder:
    """The sequences that one model is writing.

    Args:
        model: A transformers model for causal language modelling, loaded with attention over the cache.
        picker: Picks tokens.
        arena: Where keys and values go.
        device: torch's name.
        max_new_tokens: Longest answer.
        max_sequences: So many at once.
        step_tokens: So many tokens a step, prompts included.
        turn: Where the model's position frequencies change.
        graphs: Run steps that only write, if they are recorded.
        room: Makes the arena anew where memory has become less, or more; None leaves it as it is.
        drafter: Makes drafts; None writes one token of a sequence a step.

    Attributes:
        wrote: Sequences of the last step that were being written.
        read: Tokens of prompts in it, and of drafts.
        gained: Tokens that were written in it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        picker: Picker,
        arena: Arena,
        *,
        device: str,
        max_new_tokens: int,
        max_sequences: int,
        step_tokens: int,
        turn: Turn = NO_TURN,
        graphs: Graphs | None = None,
        room: Room | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.max_sequences, self.wrote, self.read, self.gained = max_sequences, 0, 0, 0
        self._drafter, self._undrafted = drafter, 0
        self._ready, self._coming = Prefixes[_Active](), Prefixes[_Active]()
        self._unread = 0
        self._room, self._draining = room, False
        self._turn = turn
        self._graphs, self._steps_unread = graphs, 0
        self._model, self._picker, self._arena, self._device = model, picker, arena, device
        self._max_new_tokens, self._step_tokens = max_new_tokens, max(step_tokens, max_sequences)
        self._active: list[_Active] = []
        self._evicted: list[_Active] = []  # without a slot
        self._kept: dict[_Active, None] = {}  # over, the oldest first
        self._mean_answer, self._outgrow = max_new_tokens / 4, 0.5  # tokens; share that outgrows its first slot
        self._refused: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._active) + len(self._evicted) + len(self._refused)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that run, in the order in which they began, then those whose options cannot be followed."""
        return [*(active.sequence for active in (*self._active, *self._evicted)), *self._refused]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, at most."""
        return self._step_tokens

    def bound(self, *, sequences: int, step_tokens: int) -> None:
        """From now on so many sequences at once, and so many tokens a step."""
        self.max_sequences, self._step_tokens = sequences, step_tokens

    def is_hungry(self) -> bool:
        """The next step has room for more prompts than there are."""
        if self._evicted or (self._draining and self._active):
            return False
        return len(self._active) < self.max_sequences and self._unread < self._step_tokens

    def fits(self, tokens: int, told: str | None = None) -> bool:
        """A prompt of so many tokens could be run at all, if the cache has all the memory that it may come to have.

        Args:
            tokens: Of the prompt.
            told: The item's own options, as it came with them.
        """
        whole = tokens + self._longest_answer(told)
        return self._arena.fits(whole) or (self._room is not None and capacity_of(whole) <= self._room.wanted)

    def add(self, owner: Any, prompt: np.ndarray, told: str | None = None) -> bool:
        """Begin a sequence; False while there is no room for it. One whose options are refused ends with the next step.

        Args:
            owner: Whose it is.
            prompt: Its tokens.
            told: The item's own options, as it came with them.
        """
        longest = self._longest_answer(told)
        first = min(longest, max(_LEAST_ROOM, int(_TYPICAL * self._mean_answer))) if self._may_move() else longest
        slot = self._take(len(prompt) + first) if self._may_begin(len(prompt) + first) else None
        if slot is None:
            return False
        sequence = self._picker.begin(owner, prompt, told)
        if sequence.error is not None:
            self._arena.give_back(slot, wipe=0)
            self._refused.append(sequence)
        else:
            self._active.append(self._hash(_Active(sequence, slot, prompt, settled=first == longest)))
            self._unread += len(prompt)
        return True

    def _may_begin(self, tokens: int) -> bool:
        """There is room beside what those that have begun are likely to need."""
        if not self._active or self._evicted:
            return not self._evicted
        kept = sum([active.slot.slab.capacity for active in self._kept])
        more = sum([active.longest - active.slot.slab.capacity for active in self._active if not active.settled])
        left = self._arena.tokens - self._arena.used + kept - self._outgrow * more
        return left >= capacity_of(tokens)

    def _may_move(self) -> bool:
        """A text that is read again is as it was: not where what was written before a turn stays as it is."""
        return self._turn.above is None or self._turn.reads_again

    def _hash(self, active: _Active) -> _Active:
        active.hashes = hash_blocks(active.read, salt=self._turn.is_passed(len(active.read)))
        return active

    def _longest_answer(self, told: str | None) -> int:
        return self._max_new_tokens if told is None else self._picker.max_new_tokens(told)

    def give_way(self, sequences: list[Sequence]) -> None:
        """Memory has run out while these were written, which are dropped by now: the cache gives back half, or what a
        single one does not need."""
        self._undrafted = _STEPS_WITHOUT_DRAFTS
        self._release(len(self._kept))
        if self._room is None or self._active:
            return
        need = max(capacity_of(len(sequence.prompt) + sequence.way.options.max_new_tokens) for sequence in sequences)
        self._forget_graphs()
        self._room.give_way(at_most=need if len(sequences) == 1 else max(need, self._arena.tokens // 2))

    def drop(self, sequences: list[Sequence]) -> None:
        """Forget some sequences, whatever has become of them."""
        import torch

        gone = set(map(id, sequences))
        if not gone:
            return
        over = [active for active in self._active if id(active.sequence) in gone]
        with torch.inference_mode():  # in which the cache was made
            for active in over:
                self._unread -= active.unread
                self._forget_blocks(active)
                self._arena.give_back(active.slot, wipe=self._tokens_to_wipe(active))
        self._active = [active for active in self._active if id(active.sequence) not in gone]
        self._evicted = [active for active in self._evicted if id(active.sequence) not in gone]
        self._refused = [sequence for sequence in self._refused if id(sequence) not in gone]

    def _tokens_to_wipe(self, active: _Active) -> int:
        """All that may have been written, those of a step that has raised too.

        A kernel reads no more of a slot than its sequence has, so that what has ended well may stay there. Products
        read all of it, and a key that is infinite may not have shown.
        """
        sound = self._graphs is not None and active.sequence.finish in (STOP, LENGTH)
        return 0 if sound else max(len(active.read), active.past + 1 + MOST_TOGETHER)

    def _forget_blocks(self, active: _Active) -> None:
        self._ready.remove(active, active.hashes)
        self._coming.remove(active, active.hashes)

    def step(self) -> list[Sequence]:
        """Run the model once; returns the sequences that have ended, which are forgotten."""
        import torch

        refused, self._refused = self._refused, []
        with torch.inference_mode():
            self._make_room()
            self._take_back()
            if not self._active:
                self.wrote = self.read = self.gained = 0
                return refused
            plan = self._plan()
            self.wrote, self.read = len(plan.writing), sum(plan.counts) + plan.drafted
            logits = self._run(plan)
            over = self._write(logits, plan)
            if over:
                self._end(over)
        if self._turn.reads_again:
            for active in self._active:
                if self._has_turned(active):
                    self._read_again(active)
        return refused + [active.sequence for active in over]

    def _end(self, over: list[_Active]) -> None:
        """Forget what has ended, but leave in the cache what has ended well, as long as there is room for it."""
        for active in over:
            written = len(active.sequence.ids)
            self._outgrow += ((written > _TYPICAL * self._mean_answer) - self._outgrow) / _ANSWERS
            self._mean_answer += (written - self._mean_answer) / _ANSWERS
        kept = [active for active in over if active.sequence.finish in (STOP, LENGTH) and active.hashes]
        self.drop([active.sequence for active in over if active not in kept])
        self._kept.update(dict.fromkeys(kept))
        self._active = [active for active in self._active if active.sequence.finish is None]
        self._release(len(self._kept) - _KEPT)

    def _release(self, count: int) -> None:
        """Give the slots of so many back that have been over for longest."""
        import torch

        with torch.inference_mode():
            for active in list(self._kept)[: max(0, count)]:
                del self._kept[active]
                self._forget_blocks(active)
                self._arena.give_back(active.slot, wipe=self._tokens_to_wipe(active))

    def _slot(self, tokens: int) -> Slot | None:
        """A slot, at the cost of what is over."""
        slot = self._arena.take(tokens)
        while slot is None and self._kept:
            self._release(1)
            slot = self._arena.take(tokens)
        return slot

    def _take_back(self) -> None:
        """Begin anew what was evicted, as there is room for all that it may write.

        Raises:
            MemoryError: The cache has become too small for it.
        """
        while self._evicted:
            active = self._evicted[0]
            slot = self._take(active.longest)
            if slot is None:
                if not self._active:
                    raise MemoryError("out of memory: the cache has no room for a text that it had room for")
                return
            active.slot = slot
            self._active.append(self._hash(self._evicted.pop(0)))
            self._unread += active.unread

    def _make_room(self) -> None:
        """Give longer slots to answers that have outgrown theirs, if need be at the cost of those that began last."""
        for active in [a for a in self._active if a.past >= a.slot.slab.capacity]:
            while active.slot.slab.capacity <= active.past and active in self._active:
                if (slot := self._slot(active.longest)) is not None:
                    self._arena.copy(active.slot, slot, active.past)
                    self._arena.give_back(active.slot, wipe=0 if self._graphs else active.past)
                    active.slot, active.settled = slot, True
                else:
                    self._evict(next((a for a in reversed(self._active) if not a.settled and a is not active), active))

    def _evict(self, active: _Active) -> None:
        """Read it again later, once: its slot is then as long as it can become."""
        self._forget_blocks(active)
        self._arena.give_back(active.slot, wipe=self._tokens_to_wipe(active))
        self._active.remove(active)
        self._unread -= active.unread
        active.read_again()
        active.begun, active.awaited, active.settled = False, None, True
        self._evicted.append(active)

    def _write(self, logits: Any, plan: _Plan) -> list[_Active]:
        """Pick tokens by the logits of a step, and note what is in the cache by now; returns what has ended."""
        through = self._note_read(plan)
        ready = plan.writing + through
        sequences = [active.sequence for active in ready]
        if self._device.startswith("cuda"):  # which has only been told what to do
            self._picker.prepare(sequences)
        answers = [sequence.ids for sequence in sequences]
        before = sum(map(len, answers))
        drafts = plan.drafts + [[] for _ in through] if plan.drafts else None
        broken = bool(sequences) and self._picker.pick(logits, sequences, drafts)
        self.gained = sum(map(len, answers)) - before
        if broken and plan.drafts:
            self._wipe_drafts(plan.writing, plan.drafts)
        for active in plan.writing:
            if drafts:  # all but the last token that was written is in the cache
                active.past = len(active.sequence.prompt) + len(active.sequence.ids) - 1
            else:
                active.past += 1
        return [active for active in ready if active.sequence.finish is not None]

    def _note_read(self, plan: _Plan) -> list[_Active]:
        """So much more of prompts is there; returns those that are through."""
        through = []
        for active, count in zip(plan.reading, plan.counts, strict=True):
            known = active.past // BLOCK
            active.past += count
            self._ready.add(active, active.hashes[known : active.past // BLOCK])
            if not active.unread:
                self._coming.remove(active, active.hashes)
                through.append(active)
        self._unread -= sum(plan.counts)
        return through

    def _wipe_drafts(self, writing: list[_Active], drafts: list[list[int]]) -> None:
        """What a draft left that was no number would come through a mask."""
        for active, drafted in zip(writing, drafts, strict=True):
            if drafted and active.sequence.finish is None:
                written = len(active.sequence.prompt) + len(active.sequence.ids) - 1
                self._arena.wipe(active.slot, written, active.past + 1 + len(drafted))

    def _read_again(self, active: _Active) -> None:
        self._forget_blocks(active)
        active.read_again()
        self._hash(active)
        self._coming.add(active, active.hashes)
        self._unread += active.unread

    def _has_turned(self, active: _Active) -> bool:
        """What has been read has other frequencies than what is written next."""
        text = len(active.sequence.prompt) + len(active.sequence.ids)
        return self._turn.is_passed(text) != self._turn.is_passed(len(active.read))

    def _take(self, tokens: int) -> Slot | None:
        """A slot. A cache that could be larger is made anew once it is empty, and may be emptied for it."""
        if self._active:
            slot = self._slot(tokens)
            self._draining = slot is None and self._room is not None and self._room.may_grow()
            return slot
        if self._room and (self._draining or not self._arena.fits(tokens) or self._room.may_grow()):
            self._release(len(self._kept))
            self._forget_graphs()
            self._room.renew()
            self._draining = False
        return self._slot(tokens)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.forget()

    def _plan(self) -> _Plan:
        """What each sequence runs in this step: first those that are being written, then prompts."""
        writing = (
            [active for active in self._active if active.past >= len(active.read)] if self._unread else self._active
        )
        drafts = self._draft(writing) if writing else None
        plan = _Plan(list(writing), drafts, [], [])
        if not self._unread:
            self._steps_unread = 0
            return plan
        if not self._is_time_to_read(len(writing)):
            self._steps_unread += 1
            return plan
        room, reading = self._step_tokens - len(writing) - plan.drafted, dict[_Active, None]()
        for active in self._active:
            if room <= 0:
                break
            if not active.unread or not (active.begun or self._begin(active, reading)):
                continue
            reading[active] = None
            plan.counts.append(min(active.unread, room))
            room -= plan.counts[-1]
        plan.reading.extend(reading)
        self._steps_unread = 0 if sum(plan.counts) == self._unread else _STEPS_UNREAD  # the rest is due at once
        return plan

    def _draft(self, writing: list[_Active]) -> list[list[int]] | None:
        """What each may go on with, as far as it pays and has room; None for nothing at all."""
        if self._drafter is None or self._working_graphs():
            return None
        if self._undrafted:
            self._undrafted -= 1
            return None
        drafts, room = list[list[int]](), (self._step_tokens - len(writing)) // 2
        drafter, none, drafted = self._drafter, list[int](), 0
        price = drafter.price(len(writing), sum([active.past for active in writing]))
        for active in writing:
            draft = active.draft
            if draft is None:
                draft = active.draft = Draft(active.sequence)
            if drafter.is_worth_a_look(draft):
                most = min(self._room_for_drafts(active), room - drafted)
                drafts.append(drafter.draft(draft, most=most, price=price))
                drafted += len(drafts[-1])
            else:
                drafts.append(none)
        return drafts if drafted else None

    def _room_for_drafts(self, active: _Active) -> int:
        """A token of the longest answer has to be left after them; none is beyond a turn that the text is before."""
        sequence, text = active.sequence, active.past + 1
        left = min(sequence.way.options.max_new_tokens - len(sequence.ids), active.slot.slab.capacity - active.past) - 1
        above = self._turn.above
        return left if above is None or text > above else min(left, above - text)

    def _is_time_to_read(self, writing: int) -> bool:
        """In each step; where steps are recorded, once enough prompts wait, or they have waited long enough."""
        return (
            not self._working_graphs()
            or self._steps_unread >= _STEPS_UNREAD
            or len(self._active) - writing >= writing
            or self._unread >= self._step_tokens
        )

    def _working_graphs(self) -> Graphs | None:
        return self._graphs if self._graphs is not None and self._graphs.works else None

    def _begin(self, active: _Active, reading: dict[_Active, None]) -> bool:
        """Take what another sequence's prompt has in common with this one, as far as it is computed, and alike.

        Args:
            active: Is to begin.
            reading: Sequences whose prompts run in this step.

        Returns:
            Whether it begins now: it waits where more of what it needs is just being computed, but once alone for one
            that ends with its first token and leaves nothing behind.
        """
        best = self._ready.find(active.hashes)
        count = 0 if best is None else min(_count_shared(active.read, best.read), best.past)
        if active.awaited is None or active.awaited in reading:
            coming = self._coming.find(active.hashes, reading)
            if coming is not None and _count_shared(active.read, coming.read) - count >= BLOCK:
                active.awaited = coming
                return False
        active.begun, active.awaited = True, None
        if best is not None and count >= BLOCK:
            self._arena.copy(best.slot, active.slot, count)
            active.past = count
            if not active.sequence.ids:
                active.sequence.cached_tokens = count
            self._unread -= count
            self._ready.add(active, active.hashes[: count // BLOCK])
        self._coming.add(active, active.hashes)
        return True

    def _run(self, plan: _Plan) -> Any:
        """(R, V) logits after the last token and each draft of what is written, and of prompts that are through."""
        ready = plan.writing + plan.reading
        pasts = np.array([active.past for active in ready])
        texts = np.array([0] * len(plan.writing) + [len(active.read) for active in plan.reading])
        written = [active.sequence.ids[-1] for active in plan.writing]
        if plan.drafts:
            parts = [[last, *drafted] for last, drafted in zip(written, plan.drafts, strict=True)]
            counts, written = [*map(len, parts)], [token for part in parts for token in part]
        else:
            counts = [1] * len(written)
        read = [
            active.read[active.past : active.past + count]
            for active, count in zip(plan.reading, plan.counts, strict=True)
        ]
        ids = np.concatenate([np.array(written, dtype=np.int64), *read])
        pieces = Pieces([active.slot for active in ready], np.array(counts + plan.counts), pasts, texts)
        if not plan.reading:
            last = np.arange(len(ids))
        else:
            through = (pasts + pieces.counts >= texts)[len(plan.writing) :]
            last = np.concatenate([np.arange(len(written)), pieces.ends[len(plan.writing) :][through] - 1])
        if (graphs := self._working_graphs()) and len(ids) == len(ready) == len(last):
            return graphs.run(ids, pieces, lambda: self._call(ids, pieces, last))
        return self._call(ids, pieces, last)

    def _call(self, ids: np.ndarray, pieces: Pieces, last: np.ndarray) -> Any:
        """(R, V) logits after some tokens of the row."""
        step = Step(self._arena, pieces, self._device)
        output = self._model(
            input_ids=self._send(ids[None]),
            position_ids=self._send(pieces.positions[None]),
            use_cache=False,
            logits_to_keep=self._send(last),
            step=step,
        )
        return output.logits[0]

    def _send(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self._device)


def _count_shared(prompt: np.ndarray, other: np.ndarray) -> int:
    """Tokens that a prompt begins with as another does; one of them is left to be run."""
    most = min(len(prompt) - 1, len(other))
    if most < BLOCK or prompt[0] != other[0]:
        return 0
    differ = np.flatnonzero(prompt[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
