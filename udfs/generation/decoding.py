"""Continuous batching: a decoder writes many answers at once, and an answer that ends makes room for the next prompt.

A step runs one new token of every sequence that is being written, with drafts of the next ones where these pay, and as
many tokens of prompts as it has room for, in one packed row. So a long prompt holds nobody up, and the weights are read
once for all. On a GPU, where steps without prompts are recorded and cost far less, only some steps read prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.generation.cache import Arena, Slot, capacity_of
from udfs.generation.drafting import Drafter
from udfs.generation.found import Found
from udfs.generation.graphs import Graphs
from udfs.generation.picking import Picker
from udfs.generation.room import Room
from udfs.generation.running import Active, Writing
from udfs.generation.sequences import Sequence, note_ids
from udfs.generation.sharing import Sharing
from udfs.generation.step import MOST_TOGETHER, Pieces, Step
from udfs.model.positions import NO_TURN, Turn
from udfs.wire.written import LENGTH, STOP

_STEPS_UNREAD = 8  # so many recorded steps, for which prompts wait, to one that reads them
_KEPT = 16  # sequences that have ended and stay in the cache, for prompts that begin as they do
_LEAST_ROOM = 64  # tokens of an answer that a slot begins with, at least
_TYPICAL = 1.25  # times the mean answer
_ANSWERS = 64  # whose lengths are remembered, about
_STEPS_WITHOUT_DRAFTS = 256  # after memory has run out


@dataclass(frozen=True)
class _Plan:
    """What a step runs: the last token of all that is being written, and more.

    Args:
        drafts: What is run after that, of each; None where there are none at all.
        reading: Sequences of which a part of what is read is run.
        counts: So many tokens of each of those.
    """

    drafts: list[list[int]] | None
    reading: list[Active]
    counts: list[int]

    @property
    def drafted(self) -> int:
        return sum(map(len, self.drafts)) if self.drafts else 0

    @property
    def tokens(self) -> int:
        """Beside the last of each that is written."""
        return sum(self.counts) + self.drafted


_NOTHING_ELSE = _Plan(None, [], [])


@dataclass(frozen=True)
class _Launched:
    """A step that the device has been told to run."""

    found: Found
    wrote: int
    plan: _Plan


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
        self._sharing = Sharing(arena, turn)
        self._unread = 0
        self._room, self._draining = room, False
        self._turn = turn
        self._graphs, self._steps_unread = graphs, 0
        self._model, self._picker, self._arena, self._device = model, picker, arena, device
        self._max_new_tokens, self._step_tokens = max_new_tokens, max(step_tokens, max_sequences)
        self._reading: list[Active] = []  # in the order in which they began
        self._writing = Writing()
        self._ahead: _Launched | None = None
        self._evicted: list[Active] = []  # without a slot
        self._kept: dict[Active, None] = {}  # over, the oldest first
        self._mean_answer, self._outgrow = max_new_tokens / 4, 0.5  # tokens; share that outgrows its first slot
        self._refused: list[Sequence] = []

    def __len__(self) -> int:
        return self._running + len(self._evicted) + len(self._refused)

    @property
    def _running(self) -> int:
        return len(self._writing) + len(self._reading)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that are written, those that are read, then those whose options cannot be followed."""
        read = [active.sequence for active in (*self._reading, *self._evicted)]
        return [*self._writing.sequences, *read, *self._refused]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, at most."""
        return self._step_tokens

    def bound(self, *, sequences: int, step_tokens: int) -> None:
        """From now on so many sequences at once, and so many tokens a step."""
        self.max_sequences, self._step_tokens = sequences, step_tokens

    def is_hungry(self) -> bool:
        """The next step has room for more prompts than there are."""
        if self._evicted or (self._draining and self._running):
            return False
        return self._running < self.max_sequences and self._unread < self._step_tokens

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
            self._begin_to_read(Active(sequence, slot, prompt, settled=first == longest))
        return True

    def _may_begin(self, tokens: int) -> bool:
        """There is room beside what those that have begun are likely to need."""
        if not self._running or self._evicted:
            return not self._evicted
        kept = sum([active.slot.slab.capacity for active in self._kept])
        more = int(self._writing.told["more"].sum()) + sum([active.more for active in self._reading])
        left = self._arena.tokens - self._arena.used + kept - self._outgrow * more
        return left >= capacity_of(tokens)

    def _may_move(self) -> bool:
        """A text that is read again is as it was: not where what was written before a turn stays as it is."""
        return self._turn.above is None or self._turn.reads_again

    def _longest_answer(self, told: str | None) -> int:
        return self._max_new_tokens if told is None else self._picker.max_new_tokens(told)

    def give_way(self, sequences: list[Sequence]) -> None:
        """Memory has run out while these were written, which are dropped by now: the cache gives back half, or what a
        single one does not need."""
        self._undrafted = _STEPS_WITHOUT_DRAFTS
        self._release(len(self._kept))
        if self._room is None or self._running:
            return
        need = max(capacity_of(len(sequence.prompt) + sequence.way.options.max_new_tokens) for sequence in sequences)
        self._forget_graphs()
        self._room.give_way(at_most=need if len(sequences) == 1 else max(need, self._arena.tokens // 2))

    def drop(self, sequences: list[Sequence]) -> None:
        """Forget some sequences, whatever has become of them."""
        gone = set(map(id, sequences))
        if not gone:
            return
        over = [active for active in self._reading if id(active.sequence) in gone]
        self._reading = [active for active in self._reading if id(active.sequence) not in gone]
        self._unread -= sum([active.unread for active in over])
        rows = [row for row, sequence in enumerate(self._writing.sequences) if id(sequence) in gone]
        self._give_up(over + self._writing.take_out(rows))
        self._evicted = [active for active in self._evicted if id(active.sequence) not in gone]
        self._refused = [sequence for sequence in self._refused if id(sequence) not in gone]

    def _give_up(self, over: list[Active]) -> None:
        """Their slots and what they hold are free."""
        import torch

        with torch.inference_mode():  # in which the cache was made
            for active in over:
                self._sharing.forget(active)
                self._arena.give_back(active.slot, wipe=self._tokens_to_wipe(active))

    def _tokens_to_wipe(self, active: Active) -> int:
        """All that may have been written, those of a step that has raised too.

        A kernel reads no more of a slot than its sequence has, so that what has ended well may stay there. Products
        read all of it, and a key that is infinite may not have shown.
        """
        sound = self._graphs is not None and active.sequence.finish in (STOP, LENGTH)
        return 0 if sound else max(len(active.read), active.past + 1 + MOST_TOGETHER)

    def step(self) -> list[Sequence]:
        """Run the model once; returns the sequences that have ended, which are forgotten.

        Where it can, the device is told to run the next step too before the tokens of this one are looked at.
        """
        import torch

        refused, self._refused = self._refused, []
        with torch.inference_mode():
            launched, self._ahead = self._ahead if len(self._writing) else None, None
            if launched is None:
                self._make_room()
                self._take_back()
                if not self._running:
                    self.wrote = self.read = self.gained = 0
                    return refused
                launched = self._launch()
            rows = self._writing.told["row"].copy()
            self._ahead = self._launch_ahead(launched, rows)
            over = self._take_found(launched, rows)
        if self._turn.reads_again:
            for active in self._find_turned():
                self._read_again(active)
        return refused + over

    def _launch(self) -> _Launched:
        """Have the model run what is planned."""
        plan = self._plan()
        wrote = len(self._writing)
        self.wrote, self.read = wrote, plan.tokens  # also where the model raises
        logits = self._run(plan)
        self._writing.told["past"] += 1
        self._writing.join(self._note_read(plan))
        self._writing.told["row"] = np.arange(len(self._writing))
        writing, drafts = self._writing, plan.drafts
        if drafts:
            drafts.extend([[]] * (len(writing) - wrote))
        return _Launched(self._picker.look(logits, writing.sequences, writing.told, drafts=drafts), wrote, plan)

    def _launch_ahead(self, last: _Launched, rows: np.ndarray) -> _Launched | None:
        """Have the model run the tokens of a step that nobody has looked at.

        Only where the next step is certain but for the tokens and for what ends with them, which it then runs in vain:
        a step of a recording, for sequences that are given the likeliest token and stay where they are.

        Args:
            last: The step, of sequences that have no drafts.
            rows: Of its logits, for each sequence.
        """
        graphs, told = self._working_graphs(), self._writing.told
        if graphs is None or self._evicted or not told["free"].all():
            return None
        stays = told["left"] > 1
        goes = told[stays]
        if not len(goes) or (goes["past"] >= goes["capacity"]).any() or self._may_turn(goes["past"]):
            return None
        if self._reading and self._is_time_to_read(len(goes)):
            return None
        tokens = last.found.tokens_of(rows[stays])
        logits = graphs.run_after(tokens, goes["start"], goes["past"])
        if logits is None:
            return None
        self._steps_unread = self._steps_unread + 1 if self._reading else 0
        sequences = [self._writing.sequences[row] for row in np.flatnonzero(stays).tolist()]
        found = self._picker.look(logits, sequences, goes, also=tokens)
        told["past"] += stays
        told["row"][stays] = np.arange(len(goes))
        return _Launched(found, len(goes), _NOTHING_ELSE)

    def _may_turn(self, pasts: np.ndarray) -> bool:
        """Some text is to be read again with its next token."""
        return self._turn.reads_again and bool((pasts == self._turn.above).any())

    def _take_found(self, launched: _Launched, rows: np.ndarray) -> list[Sequence]:
        """Pick tokens by the logits of a step; returns what has ended, and is forgotten."""
        plan, writing = launched.plan, self._writing
        self.wrote, self.read = launched.wrote, plan.tokens
        sequences, told, drafts = writing.sequences, writing.told, plan.drafts
        if not told["free"].all() and self._device.startswith("cuda"):
            self._picker.prepare(sequences)
        before = told["left"].copy()
        broken = bool(sequences) and self._picker.take(launched.found, sequences, told, rows=rows, drafts=drafts)
        gained = before - told["left"]
        self.gained = int(gained.sum())
        if drafts:  # all but the last token that was written is in the cache
            told["past"][: launched.wrote] += np.maximum(gained[: launched.wrote], 1) - 1
            if broken:
                self._wipe_drafts(drafts, gained)
        over = writing.take_out(np.flatnonzero(told["over"]).tolist())
        self._end(over)
        return [active.sequence for active in over]

    def _end(self, over: list[Active]) -> None:
        """Leave in the cache what has ended well, as long as there is room for it."""
        for active in over:
            written = len(active.sequence.ids)
            self._outgrow += ((written > _TYPICAL * self._mean_answer) - self._outgrow) / _ANSWERS
            self._mean_answer += (written - self._mean_answer) / _ANSWERS
        kept = [active for active in over if active.sequence.finish in (STOP, LENGTH) and active.hashes]
        self._give_up([active for active in over if active not in kept])
        self._kept.update(dict.fromkeys(kept))
        self._release(len(self._kept) - _KEPT)

    def _release(self, count: int) -> None:
        """Give the slots of so many back that have been over for longest."""
        over = list(self._kept)[: max(0, count)]
        for active in over:
            del self._kept[active]
        self._give_up(over)

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
                if not self._running:
                    raise MemoryError("out of memory: the cache has no room for a text that it had room for")
                return
            active.slot = slot
            self._begin_to_read(self._evicted.pop(0))

    def _begin_to_read(self, active: Active) -> None:
        self._sharing.hash(active)
        self._reading.append(active)
        self._unread += active.unread

    def _make_room(self) -> None:
        """Give longer slots to answers that have outgrown theirs, if need be at the cost of those that began last."""
        told, actives = self._writing.told, self._writing.actives
        short = [actives[row] for row in np.flatnonzero(told["past"] >= told["capacity"]).tolist()]
        short += [active for active in self._reading if len(active.read) > active.slot.slab.capacity]
        for active in short:
            while not active.settled and active not in self._evicted:
                if (slot := self._slot(active.longest)) is not None:
                    self._move(active, slot)
                else:
                    last = next((a for a in self._from_last() if not a.settled and a is not active), active)
                    self._evict(last)

    def _move(self, active: Active, slot: Slot) -> None:
        before, is_read = active.slot, active in self._reading
        past = active.past if is_read else self._writing.past_of(active)
        self._arena.copy(before, slot, past)
        self._arena.give_back(before, wipe=0 if self._graphs else past)
        if is_read:
            active.slot, active.settled = slot, True
        else:
            self._writing.move(active, slot)

    def _from_last(self) -> Iterator[Active]:
        """Those that run, about from the one that began last."""
        return itertools.chain(reversed(self._reading), reversed(self._writing.actives))

    def _evict(self, active: Active) -> None:
        """Read it again later, once: its slot is then as long as it can become."""
        if active in self._reading:
            self._reading.remove(active)
            self._unread -= active.unread
        else:
            self._writing.take_out([self._writing.actives.index(active)])
        self._give_up([active])
        active.read_again()
        active.begun, active.awaited, active.settled = False, None, True
        self._evicted.append(active)

    def _note_read(self, plan: _Plan) -> list[Active]:
        """So much more of prompts is there; returns those that are through."""
        through = []
        for active, count in zip(plan.reading, plan.counts, strict=True):
            active.past += count
            self._sharing.note_read(active, count)
            if not active.unread:
                through.append(active)
        self._unread -= sum(plan.counts)
        if through:
            self._reading = [active for active in self._reading if active.unread]
        return through

    def _wipe_drafts(self, drafts: list[list[int]], gained: np.ndarray) -> None:
        """What a draft left that was no number would come through a mask."""
        pasts, goes_on = self._writing.told["past"].tolist(), self._writing.actives
        for row, (active, drafted) in enumerate(zip(goes_on, drafts, strict=True)):
            if drafted and active.sequence.finish is None:
                self._arena.wipe(active.slot, pasts[row], pasts[row] - int(gained[row]) + 1 + len(drafted))

    def _read_again(self, active: Active) -> None:
        self._writing.take_out([self._writing.actives.index(active)])
        self._sharing.forget(active)
        active.read_again()
        self._begin_to_read(active)
        self._sharing.tell_coming(active)

    def _find_turned(self) -> list[Active]:
        """Those of which what has been read has other frequencies than what is written next."""
        is_passed, left = self._turn.is_passed, self._writing.told["left"].tolist()
        texts = [active.longest - more for active, more in zip(self._writing.actives, left, strict=True)]
        return [
            a for a, text in zip(self._writing.actives, texts, strict=True) if is_passed(text) != is_passed(len(a.read))
        ]

    def _take(self, tokens: int) -> Slot | None:
        """A slot. A cache that could be larger is made anew once it is empty, and may be emptied for it."""
        if self._running:
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
        if self._ahead is not None:
            self._ahead.found.wait()
        self._ahead = None
        if self._graphs is not None:
            self._graphs.forget()

    def _plan(self) -> _Plan:
        """What each sequence runs in this step: first those that are being written, then prompts."""
        writing = len(self._writing)
        plan = _Plan(self._draft() if writing else None, [], [])
        if not self._reading:
            self._steps_unread = 0
            return plan
        if not self._is_time_to_read(writing):
            self._steps_unread += 1
            return plan
        room, reading = self._step_tokens - writing - plan.drafted, dict[Active, None]()
        for active in self._reading:
            if room <= 0:
                break
            if not active.begun:
                if (copied := self._sharing.begin(active, reading)) is None:
                    continue
                self._unread -= copied
            reading[active] = None
            plan.counts.append(min(active.unread, room))
            room -= plan.counts[-1]
        plan.reading.extend(reading)
        self._steps_unread = 0 if sum(plan.counts) == self._unread else _STEPS_UNREAD  # the rest is due at once
        return plan

    def _draft(self) -> list[list[int]] | None:
        """What each may go on with, as far as it pays and has room; None for nothing at all."""
        if self._drafter is None or self._working_graphs():
            return None
        if self._undrafted:
            self._undrafted -= 1
            return None
        told, room = self._writing.told, (self._step_tokens - len(self._writing)) // 2
        drafter, looked = self._drafter, self._writing.look_for_drafts()
        note_ids(told, drafter.find_noted(told), self._writing.sequences)
        places = drafter.look(looked, told)
        price = drafter.price(len(told), int(told["past"].sum()))
        drafts, drafted = [list[int]()] * len(looked), 0
        for row in np.flatnonzero((np.array(places) >= 0) | ~told["free"]).tolist():
            if places[row] < 0 and looked[row].sequence.matcher is None:
                continue
            note_ids(told, [row], self._writing.sequences)
            most = min(self._room_for_drafts(row), room - drafted)
            drafts[row] = drafter.draft(looked[row], places[row], most=most, price=price)
            told["guessed"][row] = bool(looked[row].guess)
            drafted += len(drafts[row])
        return drafts if drafted else None

    def _room_for_drafts(self, row: int) -> int:
        """A token of the longest answer has to be left after them; none is beyond a turn that the text is before."""
        told = self._writing.told[row]
        text, left = int(told["past"]) + 1, int(min(told["left"], told["capacity"] - told["past"])) - 1
        above = self._turn.above
        return left if above is None or text > above else min(left, above - text)

    def _is_time_to_read(self, writing: int) -> bool:
        """In each step; where steps are recorded, once enough prompts wait, or they have waited long enough."""
        return (
            not self._working_graphs()
            or self._steps_unread >= _STEPS_UNREAD
            or len(self._reading) >= writing
            or self._unread >= self._step_tokens
        )

    def _working_graphs(self) -> Graphs | None:
        return self._graphs if self._graphs is not None and self._graphs.works else None

    def _run(self, plan: _Plan) -> Any:
        """(R, V) logits after the last token and each draft of what is written, and of prompts that are through."""
        told, reading, wrote = self._writing.told, plan.reading, len(self._writing)
        starts, pasts = told["start"].copy(), told["past"].copy()
        texts, counts, written = np.zeros(wrote, np.int64), np.ones(wrote, np.int64), told["last"]
        if plan.drafts:
            parts = [[last, *drafted] for last, drafted in zip(written.tolist(), plan.drafts, strict=True)]
            counts, written = np.array([*map(len, parts)]), np.array([token for part in parts for token in part])
        if reading:
            starts = np.append(starts, [active.slot.start for active in reading])
            pasts = np.append(pasts, [active.past for active in reading])
            texts = np.append(texts, [len(active.read) for active in reading])
            counts = np.append(counts, plan.counts)
        read = [
            active.read[active.past : active.past + count] for active, count in zip(reading, plan.counts, strict=True)
        ]

        def slots() -> list[Slot]:
            return self._writing.slots() + [active.slot for active in reading]

        ids, pieces = np.concatenate([written, *read]), Pieces(slots, starts, counts, pasts, texts)
        last = np.arange(len(written))
        if reading:
            through = (pasts + counts >= texts)[wrote:]
            last = np.append(last, pieces.ends[wrote:][through] - 1)
        if (graphs := self._working_graphs()) and len(last):
            return graphs.run(ids, pieces, last, lambda: self._call(ids, pieces, last))
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
