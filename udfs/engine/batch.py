"""A micro-batch on the device: packed, all tokens in one row, or padded to a rectangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.model.attention import Layout
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


Batch = Padded | Packed


@dataclass(frozen=True)
class BatchMaker:
    """Makes a device's micro-batches for one model.

    Args:
        device: torch's name.
        packed: All tokens in one row.
        pad_multiple: Lengths of padded items are rounded up to a multiple of it.
        pad_id: The model's padding token.
        first_position: What the model calls the first token's place.
    """

    device: str
    packed: bool
    pad_multiple: int = 1
    pad_id: int = 0
    first_position: int = 0

    def __call__(self, items: Items, indices: np.ndarray) -> Batch:
        return self._pack(items.take(indices)) if self.packed else self._pad(items, indices)

    def _pack(self, items: Items) -> Packed:
        lengths = items.lengths
        positions = np.arange(len(items.ids)) - np.repeat(items.offsets[:-1], lengths) + self.first_position
        return Packed(
            self._send(items.ids[None].astype(np.int64)),
            self._send(positions[None]),
            None if items.type_ids is None else self._send(items.type_ids[None].astype(np.int64)),
            Layout(self._send(items.offsets.astype(np.int32)), lengths),
        )

    def _pad(self, items: Items, indices: np.ndarray) -> Padded:
        ids, real = pad(items.ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=self.pad_id)
        types = None
        if items.type_ids is not None:
            types, _ = pad(items.type_ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=0)
        return Padded(
            self._send(ids),
            None if real.all() else self._send(real),
            None if types is None else self._send(types),
            self._send(np.flatnonzero(real)),
        )

    def _send(self, array: np.ndarray) -> Tensor:
        """To the device; from pinned memory, so that the copy waits for nothing."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
