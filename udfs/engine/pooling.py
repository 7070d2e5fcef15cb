"""From the states of tokens to one vector an item, as a model's sentence-transformers files ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from udfs.model.attention import Layout, max_by_sequence, mean_by_sequence
from udfs.model.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch


def pool(hidden: Tensor, batch: Batch, *, pooling: Pooling) -> Tensor:
    """Make one vector of each item's token states.

    Args:
        hidden: States of the last layer: (B, S, H) of a padded micro-batch, (1, T, H) of a packed one.
        batch: The micro-batch, which knows where its items lie.
        pooling: The model's own.

    Returns:
        (B, H) float32.

    Source: sentence-transformers, `Pooling` and `Normalize`.
    """
    import torch

    from udfs.engine.batch import Packed

    if isinstance(batch, Packed):
        vectors = _pool_packed(hidden[0], batch.layout, pooling.mode)
    else:
        vectors = _pool_padded(hidden, batch.real, pooling.mode)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors


def _pool_packed(states: Tensor, layout: Layout, mode: str) -> Tensor:
    match mode:
        case "cls":
            return states[layout.starts].float()
        case "lasttoken":
            return states[layout.cu_seqlens[1:] - 1].float()
        case "max":
            return max_by_sequence(states, layout)
    return mean_by_sequence(states, layout)


def _pool_padded(hidden: Tensor, real: Tensor | None, mode: str) -> Tensor:
    import torch

    if mode == "cls":
        return hidden[:, 0].float()
    if mode == "lasttoken":
        last = -1 if real is None else real.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    if mode == "max":
        held = hidden if real is None else hidden.masked_fill(~real.unsqueeze(-1), float("-inf"))
        return held.amax(dim=1).float()
    if real is None:
        return hidden.float().mean(dim=1)
    weights = real.float()
    return torch.einsum("bsh,bs->bh", hidden.float(), weights) / weights.sum(dim=1, keepdim=True)
