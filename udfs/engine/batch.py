"""A micro-batch on the device: packed, all tokens in one row, or padded to a rectangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.model.attention import Layout, max_by_sequence
from udfs.wire.items import Items, pad

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """A padded micro-batch.

    Args:
        ids: (B, S) int64 token ids.
        real: (B, S) bool, false where a token is padding; None where none is, so that no mask is made.
        type_ids: (B, S) int64 segments, for pairs of texts whose model tells them apart.
        places: (t,) int64, where the real tokens lie in B * S, item after item.
    """

    ids: Tensor
    real: Tensor | None
    type_ids: Tensor | None
    places: Tensor

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a transformers model."""
        inputs = {"input_ids": self.ids}
        if self.real is not None:
            inputs["attention_mask"] = self.real.long()
        if self.type_ids is not None:
            inputs["token_type_ids"] = self.type_ids
        return inputs

    def real_tokens(self, states: Tensor) -> Tensor:
        """(B, S, H) states to (t, H), those of real tokens, item after item."""
        flat = states.flatten(0, 1)
        return flat if self.real is None else flat[self.places]

    def last_tokens(self, states: Tensor, *, skipped: int | None) -> Tensor:
        """(B, S, H) states to (B, H), of each item's last token that is not `skipped`; its first if all are."""
        import torch

        kept = torch.ones_like(self.ids) if self.real is None else self.real.long()
        if skipped is not None:
            kept = kept * (self.ids != skipped)
        last = (kept * torch.arange(self.ids.shape[1], device=kept.device)).argmax(dim=1)
        return states[torch.arange(len(last), device=kept.device), last]


@dataclass(frozen=True)
class Packed:
    """A packed micro-batch of T tokens.

    Args:
        ids: (1, T) int64 token ids.
        positions: (1, T) int64, where each token stands in its item, as the model counts.
        type_ids: (1, T) int64 segments; None where all are 0.
        layout: Where each item lies.
    """

    ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    layout: Layout

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a transformers model that was loaded with packed attention."""
        inputs = {"input_ids": self.ids, "position_ids": self.positions, "layout": self.layout}
        if self.type_ids is not None:
            inputs["token_type_ids"] = self.type_ids
        return inputs

    def real_tokens(self, states: Tensor) -> Tensor:
        """(1, T, H) states to (T, H)."""
        return states[0]

    def last_tokens(self, states: Tensor, *, skipped: int | None) -> Tensor:
        """(1, T, H) states to (B, H), of each item's last token that is not `skipped`; its first if all are."""
        import torch

        starts = self.layout.starts.long()
        if skipped is None:
            return states[0, self.layout.cu_seqlens[1:].long() - 1]
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        place = (place - torch.repeat_interleave(starts, self.layout.cu_seqlens.diff(), output_size=len(place))).float()
        last = max_by_sequence((place * (self.ids[0] != skipped)).unsqueeze(1), self.layout)
        return states[0, starts + last[:, 0].long()]


Batch = Padded | Packed


@dataclass(frozen=True)
class BatchMaker:
    """Makes a device's micro-batches for one model.

    Args:
        device: torch's name.
        packed: All tokens in one row.
        pad_multiple: Lengths of padded items are rounded up to a multiple of it.
        pad_id: The model's padding token, or any other of its tokens where it has none.
        first_position: What the model calls the first token's place. Above 0, a padding token that a text spells has
            the place before it, and is not counted.
        vocabulary: How many tokens the model knows; 0 for any number.
    """

    device: str
    packed: bool
    pad_multiple: int = 1
    pad_id: int = 0
    first_position: int = 0
    vocabulary: int = 0

    def __call__(self, items: Items, indices: np.ndarray) -> Batch:
        """A micro-batch of the items with these indices.

        Raises:
            ValueError: The model has no such token: on a GPU, looking it up would end the process.
        """
        return self._pack(items.take(indices)) if self.packed else self._pad(items, indices)

    def _pack(self, items: Items) -> Packed:
        self._check(items.ids)
        return Packed(
            self._send(items.ids[None].astype(np.int64)),
            self._send(self._positions(items)[None]),
            None if items.type_ids is None else self._send(items.type_ids[None].astype(np.int64)),
            Layout(self._send(items.offsets.astype(np.int32)), items.lengths),
        )

    def _positions(self, items: Items) -> np.ndarray:
        """(T,) where each token stands in its item, as the model counts."""
        starts = np.repeat(items.offsets[:-1], items.lengths)
        if not self.first_position or not (items.ids == self.pad_id).any():
            return np.arange(len(items.ids)) - starts + self.first_position
        counted = items.ids != self.pad_id
        before = np.concatenate([[0], np.cumsum(counted)])
        return (before[1:] - before[starts]) * counted + self.first_position - 1

    def _check(self, ids: np.ndarray) -> None:
        if self.vocabulary and (largest := int(ids.max(initial=0))) >= self.vocabulary:
            raise ValueError(f"the tokenizer made token {largest}, of which the model has {self.vocabulary}")

    def _pad(self, items: Items, indices: np.ndarray) -> Padded:
        ids, real = pad(items.ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=self.pad_id)
        self._check(ids)
        # without a mask some models would make one, which hides padding tokens that a text spells
        spelled = int((ids == self.pad_id).sum()) > real.size - int(real.sum())
        types = None
        if items.type_ids is not None:
            types, _ = pad(items.type_ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=0)
        return Padded(
            self._send(ids),
            None if real.all() and not spelled else self._send(real),
            None if types is None else self._send(types),
            self._send(np.flatnonzero(real)),
        )

    def _send(self, array: np.ndarray) -> Tensor:
        """To the device; from pinned memory, so that the copy waits for nothing."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
