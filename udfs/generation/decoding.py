"""Continuous batching: a decoder writes many answers at once, and an answer that ends makes room for the next prompt.

A step runs one new token of every sequence that is being written, and as many tokens of prompts as it has room for, in
one packed row. So a long prompt holds nobody up, and the weights are read once for all. On a GPU, where steps without
prompts are recorded and cost far less, only some steps read prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.generation.cache import Arena, Slot, capacity_of
from udfs.generation.graphs import Graphs
from udfs.generation.picking import Picker, Sequence
from udfs.generation.room import Room
from udfs.generation.step import Piece, Step
from udfs.model.positions import NO_TURN, Turn
from udfs.wire.written import LENGTH, STOP

_LEAST_SHARED = 16  # tokens; to copy fewer than these is not worth the calls
_STEPS_UNREAD = 8  # so many recorded steps, for which prompts wait, to one that reads them


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
    """

    sequence: Sequence
    slot: Slot
    read: np.ndarray
    past: int = 0
    begun: bool = False
    awaited: _Active | None = None

    def next_tokens(self, room: int) -> np.ndarray:
        """What is to be run next: the rest of what is read, as far as there is room, or the token that was written."""
        if self.past < len(self.read):
            return self.read[self.past : self.past + room]
        return np.array(self.sequence.ids[-1:], dtype=np.int32)

    def is_written(self) -> bool:
        """What is to be read is run."""
        return self.past >= len(self.read)

    def read_again(self) -> None:
        """Begin anew, with what is written so far."""
        self.read, self.past = np.concatenate([self.sequence.prompt, np.array(self.sequence.ids, dtype=np.int32)]), 0


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

    Attributes:
        wrote: Sequences of the last step that were being written.
        read: Tokens of prompts in it.
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
    ) -> None:
        self.max_sequences, self.wrote, self.read = max_sequences, 0, 0
        self._room, self._draining = room, False
        self._turn = turn
        self._graphs, self._steps_unread = graphs, 0
        self._model, self._picker, self._arena, self._device = model, picker, arena, device
        self._max_new_tokens, self._step_tokens = max_new_tokens, max(step_tokens, max_sequences)
        self._active: list[_Active] = []
        self._refused: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._active) + len(self._refused)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that run, in the order in which they began, then those whose options cannot be followed."""
        return [*(active.sequence for active in self._active), *self._refused]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, at most."""
        return self._step_tokens

    def bound(self, *, sequences: int, step_tokens: int) -> None:
        """From now on so many sequences at once, and so many tokens a step."""
        self.max_sequences, self._step_tokens = sequences, step_tokens

    def is_hungry(self) -> bool:
        """The next step has room for more prompts than there are."""
        if self._draining and self._active:
            return False
        return len(self._active) < self.max_sequences and self._unread_tokens() < self._step_tokens

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
        slot = self._take(len(prompt) + self._longest_answer(told))
        if slot is None:
            return False
        sequence = self._picker.begin(owner, prompt, told)
        if sequence.error is not None:
            self._arena.give_back(slot, wipe=0)
            self._refused.append(sequence)
        else:
            self._active.append(_Active(sequence, slot, prompt))
        return True

    def _longest_answer(self, told: str | None) -> int:
        return self._max_new_tokens if told is None else self._picker.max_new_tokens(told)

    def give_way(self, sequences: list[Sequence]) -> None:
        """Memory has run out while these were written, which are dropped by now: the cache gives back half, or what a
        single one does not need."""
        if self._room is None or self._active:
            return
        need = max(capacity_of(len(sequence.prompt) + sequence.way.options.max_new_tokens) for sequence in sequences)
        self._forget_graphs()
        self._room.give_way(at_most=need if len(sequences) == 1 else max(need, self._arena.tokens // 2))

    def drop(self, sequences: list[Sequence]) -> None:
        """Forget some sequences, whatever has become of them."""
        import torch

        gone = set(map(id, sequences))
        with torch.inference_mode():  # in which the cache was made
            for active in self._active:
                if id(active.sequence) in gone:
                    self._arena.give_back(active.slot, wipe=self._tokens_to_wipe(active))
        self._active = [active for active in self._active if id(active.sequence) not in gone]
        self._refused = [sequence for sequence in self._refused if id(sequence) not in gone]

    def _tokens_to_wipe(self, active: _Active) -> int:
        """All that may have been written, those of a step that has raised too.

        A kernel reads no more of a slot than its sequence has, so that what has ended well may stay there. Products
        read all of it, and a key that is infinite may not have shown.
        """
        sound = self._graphs is not None and active.sequence.finish in (STOP, LENGTH)
        return 0 if sound else max(len(active.read), active.past + 1)

    def step(self) -> list[Sequence]:
        """Run the model once; returns the sequences that have ended, which are forgotten."""
        import torch

        refused, self._refused = self._refused, []
        if not self._active:
            self.wrote = self.read = 0
            return refused
        with torch.inference_mode():
            planned = self._plan()
            self.wrote = sum(active.is_written() for active, _ in planned)
            self.read = sum(len(tokens) for _, tokens in planned) - self.wrote
            logits = self._run(planned)
            ready = []
            for active, tokens in planned:
                active.past += len(tokens)
                if active.is_written():
                    ready.append(active.sequence)
            if ready:
                self._picker.pick(logits, ready)
            over = [sequence for sequence in ready if sequence.finish is not None]
            self.drop(over)
        for active in self._active:
            if self._turn.reads_again and self._has_turned(active):
                active.read_again()
        return refused + over

    def _has_turned(self, active: _Active) -> bool:
        """What has been read has other frequencies than what is written next."""
        text = len(active.sequence.prompt) + len(active.sequence.ids)
        return self._turn.is_passed(text) != self._turn.is_passed(len(active.read))

    def _take(self, tokens: int) -> Slot | None:
        """A slot. A cache that could be larger is made anew once it is empty, and may be emptied for it."""
        if self._active:
            slot = self._arena.take(tokens)
            self._draining = slot is None and self._room is not None and self._room.may_grow()
            return slot
        if self._room and (self._draining or not self._arena.fits(tokens) or self._room.may_grow()):
            self._forget_graphs()
            self._room.renew()
            self._draining = False
        return self._arena.take(tokens)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.forget()

    def _plan(self) -> list[tuple[_Active, np.ndarray]]:
        """What each sequence runs in this step: first those that are being written, then prompts."""
        writing = [active for active in self._active if active.is_written()]
        planned, room = [(active, active.next_tokens(1)) for active in writing], self._step_tokens - len(writing)
        if not self._is_time_to_read(len(writing)):
            self._steps_unread += 1
            return planned
        reading = list[_Active]()
        for active in self._active:
            if room <= 0:
                break
            if active.is_written() or not (active.begun or self._begin(active, reading)):
                continue
            reading.append(active)
            planned.append((active, active.next_tokens(room)))
            room -= len(planned[-1][1])
        read = sum(len(tokens) for _, tokens in planned[len(writing) :])
        self._steps_unread = 0 if read == self._unread_tokens() else _STEPS_UNREAD  # the rest is due at once
        return planned

    def _is_time_to_read(self, writing: int) -> bool:
        """In each step; where steps are recorded, once enough prompts wait, or they have waited long enough."""
        return (
            not self._working_graphs()
            or self._steps_unread >= _STEPS_UNREAD
            or len(self._active) - writing >= writing
            or self._unread_tokens() >= self._step_tokens
        )

    def _working_graphs(self) -> Graphs | None:
        return self._graphs if self._graphs is not None and self._graphs.works else None

    def _unread_tokens(self) -> int:
        return sum(max(0, len(active.read) - active.past) for active in self._active)

    def _begin(self, active: _Active, reading: list[_Active]) -> bool:
        """Take what another sequence's prompt has in common with this one, as far as it is computed, and alike.

        Args:
            active: Is to begin.
            reading: Sequences whose prompts run in this step.

        Returns:
            Whether it begins now: it waits where more of what it needs is just being computed, but once alone for one
            that ends with its first token and leaves nothing behind.
        """
        best, count = None, 0
        for other in self._active:
            shared = 0 if other is active else min(self._count_shared(active, other), other.past)
            if shared > count:
                best, count = other, shared
        if active.awaited is None or active.awaited in reading:
            more = (other for other in reading if self._count_shared(active, other) - count >= _LEAST_SHARED)
            active.awaited = next(more, None)
            if active.awaited is not None:
                return False
        active.begun = True
        if best is not None and count >= _LEAST_SHARED:
            self._arena.copy(best.slot, active.slot, count)
            active.past = active.sequence.cached_tokens = count
        return True

    def _count_shared(self, active: _Active, other: _Active) -> int:
        """Tokens that two begin with, and whose keys and values are the same."""
        alike = self._turn.is_passed(len(active.read)) == self._turn.is_passed(len(other.read))
        return _count_shared(active.read, other.read) if alike else 0

    def _run(self, planned: list[tuple[_Active, np.ndarray]]) -> Any:
        """(B, V) logits of the sequences whose prompt is through with this step."""
        ends = np.cumsum([len(tokens) for _, tokens in planned])
        pieces = [
            Piece(active.slot, int(end) - len(tokens), len(tokens), active.past, len(active.read))
            for (active, tokens), end in zip(planned, ends, strict=True)
        ]
        last = [int(end) - 1 for (active, tokens), end in zip(planned, ends, strict=True) if _completes(active, tokens)]
        ids = np.concatenate([tokens for _, tokens in planned]).astype(np.int64)
        if (graphs := self._working_graphs()) and len(last) == len(ids):
            return graphs.run(ids, pieces, lambda: self._call(ids, pieces, last))
        return self._call(ids, pieces, last)

    def _call(self, ids: np.ndarray, pieces: list[Piece], last: list[int]) -> Any:
        """(B, V) logits after some tokens of the row."""
        step = Step(self._arena, pieces, self._device)
        output = self._model(
            input_ids=self._send(ids[None]),
            position_ids=self._send(step.positions[None]),
            use_cache=False,
            logits_to_keep=self._send(np.array(last, dtype=np.int64)),
            step=step,
        )
        return output.logits[0]

    def _send(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self._device)


def _completes(active: _Active, tokens: np.ndarray) -> bool:
    return active.past + len(tokens) >= len(active.read)


def _count_shared(prompt: np.ndarray, other: np.ndarray) -> int:
    """Tokens that a prompt begins with as another does; one of them is left to be run."""
    most = min(len(prompt) - 1, len(other))
    if most < _LEAST_SHARED or prompt[0] != other[0]:
        return 0
    differ = np.flatnonzero(prompt[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
