"""One call of a model that writes: which tokens of which sequences it runs, and where their past is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.cache import Arena, Slab, Slot

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOGETHER = 16  # new tokens of a sequence that attends in one product with others of its slab


@dataclass(frozen=True)
class Pieces:
    """New tokens of B sequences, one sequence after the other in the row.

    Args:
        find_slots: Where the past of each is; a GPU's kernel does not ask.
        starts: (B,) int64, where each of those begins in the arena.
        counts: (B,) int64, its new tokens, at least one.
        pasts: (B,) int64, its tokens that are there.
        texts: (B,) int64, the length of the text that they are read with: of a part of a prompt, the whole prompt's; 0
            where it ends with them.
    """

    find_slots: Callable[[], Sequence[Slot]]
    starts: np.ndarray
    counts: np.ndarray
    pasts: np.ndarray
    texts: np.ndarray

    @functools.cached_property
    def slots(self) -> Sequence[Slot]:
        return self.find_slots()

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """(B,) where the tokens of each end in the row."""
        return np.cumsum(self.counts)

    def each(self, values: np.ndarray) -> np.ndarray:
        """(T,) what is told of each sequence, told of each token."""
        return np.repeat(values, self.counts)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """(T,) int64, where each new token stands in its sequence."""
        return np.arange(int(self.ends[-1])) + self.each(self.pasts - self.ends + self.counts)

    @functools.cached_property
    def text_lengths(self) -> np.ndarray:
        """(T,) int64, the length of each token's text, which ends with it where nothing is known to follow."""
        return np.maximum(self.each(self.texts), self.positions + 1)


@dataclass(frozen=True)
class Group:
    """A few new tokens each of some sequences of a slab.

    Args:
        slab: Whose slots.
        first: The first of the S slots that are looked at.
        rows: (S, W) int64 tokens of the row; where there is none, any.
        busy: (S, W) bool, where there is one.
        lengths: (S, W) tokens that each sees, itself the last.
    """

    slab: Slab
    first: int
    rows: np.ndarray
    busy: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Long:
    """Many new tokens of one sequence: `first` to `first + count` of the row, after `past` in its slot."""

    slot: Slot
    first: int
    count: int
    past: int


@dataclass(frozen=True)
class Spans:
    """Where a GPU's kernel finds B sequences; tensors are int32 on the device.

    Args:
        news: (B + 1,) new tokens of sequence i are news[i]:news[i + 1] of the row.
        starts: (B + 1,) where its slot begins in the arena; the last is not read.
        lengths: (B,) tokens of it that are there, with the new ones.
        most_new: So many new ones at most.
        longest: No sequence is longer.
    """

    news: Tensor
    starts: Tensor
    lengths: Tensor
    most_new: int
    longest: int


@dataclass(frozen=True)
class FixedStep:
    """A call whose numbers lie in tensors that stay where they are, so that it can be recorded.

    Args:
        arena: Holds the past.
        places: (T,) int64, where the new tokens go in the arena.
        spans: The sequences.
        text_lengths: (1, T) int64, the length of each token's text.
    """

    arena: Arena
    places: Tensor
    spans: Spans
    text_lengths: Tensor


@dataclass
class Step:
    """One call of the model.

    Args:
        arena: Holds the past.
        pieces: New tokens of each sequence, in the order of the row.
        device: torch's name.
    """

    arena: Arena
    pieces: Pieces
    device: str
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def places(self) -> Tensor:
        """(T,) int64, where the new tokens go in the arena."""
        return self._send(self.pieces.positions + self.pieces.each(self.pieces.starts))

    @functools.cached_property
    def text_lengths(self) -> Tensor:
        """(1, T) int64, the length of each token's text."""
        return self._send(self.pieces.text_lengths[None])

    @functools.cached_property
    def groups(self) -> list[Group]:
        """Sequences with few new tokens, slab by slab."""
        by_slab: dict[int, list[int]] = {}
        for number, (slot, count) in enumerate(zip(self.pieces.slots, self.pieces.counts.tolist(), strict=True)):
            if count <= MOST_TOGETHER:
                by_slab.setdefault(id(slot.slab), []).append(number)
        return [_make_group(self.pieces, np.array(numbers)) for numbers in by_slab.values()]

    @functools.cached_property
    def longer(self) -> list[Long]:
        """Sequences with many new tokens."""
        p = self.pieces
        return [
            Long(p.slots[i], int(p.ends[i] - p.counts[i]), int(p.counts[i]), int(p.pasts[i]))
            for i in np.flatnonzero(p.counts > MOST_TOGETHER).tolist()
        ]

    @functools.cached_property
    def spans(self) -> Spans:
        """All sequences, however many new tokens they have."""
        pieces = self.pieces
        news, starts = np.append(0, pieces.ends), np.append(pieces.starts, 0)
        lengths = pieces.pasts + pieces.counts
        sent = [self._send(part.astype(np.int32)) for part in (news, starts, lengths)]
        return Spans(sent[0], sent[1], sent[2], int(pieces.counts.max()), int(lengths.max()))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What all layers need alike is made by the first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _send(self, array: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(array).to(self.device)


def _make_group(pieces: Pieces, numbers: np.ndarray) -> Group:
    slots = [pieces.slots[number] for number in numbers.tolist()]
    where, counts = np.array([slot.index for slot in slots]), pieces.counts[numbers]
    first, width = int(where.min()), int(counts.max())
    shape = int(where.max()) - first + 1, width
    steps = np.minimum(np.arange(width), counts[:, None] - 1)
    rows, lengths, busy = np.zeros(shape, np.int64), np.ones(shape, np.int64), np.zeros(shape, bool)
    rows[where - first] = (pieces.ends[numbers] - counts)[:, None] + steps
    lengths[where - first] = pieces.pasts[numbers][:, None] + steps + 1
    busy[where - first] = np.arange(width) < counts[:, None]
    return Group(slots[0].slab, first, rows, busy, lengths)
