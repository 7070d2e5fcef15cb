"""One call of a model that writes: which tokens of which sequences it runs, and where their past is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.cache import Arena, Slab, Slot

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence: tokens `first` to `first + count` of the row, after `past` tokens in its slot.

    `text` is the length of the text that they are read with: the whole prompt's where this is a part of it.
    """

    slot: Slot
    first: int
    count: int
    past: int
    text: int = 0


@dataclass(frozen=True)
class Group:
    """One new token each of some sequences of a slab.

    Args:
        slab: Whose slots.
        rows: (slots,) int64 tokens of the row; an idle slot has any.
        busy: (slots,) bool.
        lengths: (slots,) tokens of each with the new one; 1 for an idle slot.
    """

    slab: Slab
    rows: np.ndarray
    busy: np.ndarray
    lengths: np.ndarray


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
    """

    arena: Arena
    places: Tensor
    spans: Spans

    @property
    def text_lengths(self) -> Tensor:
        """(1, T), the length of each token's text."""
        return self.spans.lengths[None]


@dataclass
class Step:
    """One call of the model.

    Args:
        arena: Holds the past.
        pieces: New tokens of each sequence, in the order of the row.
        device: torch's name.
    """

    arena: Arena
    pieces: Sequence[Piece]
    device: str
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def places(self) -> Tensor:
        """(T,) int64, where the new tokens go in the arena."""
        import torch

        spans = [np.arange(p.count) + p.slot.start + p.past for p in self.pieces]
        return torch.from_numpy(np.concatenate(spans)).to(self.device)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """(T,) int64, where each new token stands in its sequence."""
        return np.concatenate([np.arange(p.count) + p.past for p in self.pieces])

    @functools.cached_property
    def text_lengths(self) -> Tensor:
        """(1, T) int64, the length of each token's text."""
        import torch

        lengths = [np.full(p.count, max(p.text, p.past + p.count)) for p in self.pieces]
        return torch.from_numpy(np.concatenate(lengths)[None]).to(self.device)

    @functools.cached_property
    def singles(self) -> list[Group]:
        """Pieces of one token, slab by slab."""
        by_slab: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            if piece.count == 1:
                by_slab.setdefault(id(piece.slot.slab), []).append(piece)
        return [_make_group(pieces) for pieces in by_slab.values()]

    @functools.cached_property
    def longer(self) -> list[Piece]:
        """Pieces of several tokens."""
        return [piece for piece in self.pieces if piece.count > 1]

    @functools.cached_property
    def spans(self) -> Spans:
        """All pieces, whatever their lengths."""
        import torch

        counts = np.array([p.count for p in self.pieces])
        lengths = np.array([p.past + p.count for p in self.pieces])
        starts = np.array([*(p.slot.start for p in self.pieces), 0])
        news = np.concatenate([[0], np.cumsum(counts)])
        sent = [torch.from_numpy(part.astype(np.int32)).to(self.device) for part in (news, starts, lengths)]
        return Spans(sent[0], sent[1], sent[2], int(counts.max()), int(lengths.max()))

    def once(self, key: Any, make: Any) -> Any:
        """What all layers need alike is made by the first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _make_group(pieces: list[Piece]) -> Group:
    slab = pieces[0].slot.slab
    slots = len(slab.taken)
    where = np.array([p.slot.index for p in pieces])
    rows, busy = np.full(slots, pieces[0].first), np.zeros(slots, dtype=bool)
    lengths = np.ones(slots, dtype=np.int64)
    rows[where], busy[where] = [p.first for p in pieces], True
    lengths[where] = [p.past + 1 for p in pieces]
    return Group(slab, rows, busy, lengths)
