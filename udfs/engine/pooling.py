"""From the states of tokens to one vector an item, as a model's sentence-transformers files ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from udfs.model.attention import Layout, max_by_sequence, mean_by_sequence
from udfs.model.embedding import Pool

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch

_OF_RECTANGLES = frozenset({"cls", "lasttoken", "max", "mean"})  # made of padded states as they are


def pool(hidden: Tensor, batch: Batch, *, how: Pool, skip: int = 0) -> Tensor:
    """Make one vector of each item's token states.

    Args:
        hidden: States of the last layer: (B, S, H) of a padded micro-batch, (1, T, H) of a packed one.
        batch: The micro-batch, which knows where its items lie.
        how: The model's own way.
        skip: Tokens of the prompt that each item begins with, where these are left out.

    Returns:
        (B, H) float32; of several modes (B, modes * H), side by side.

    Source: sentence-transformers, `Pooling`.
    """
    from udfs.engine.batch import Packed

    if isinstance(batch, Packed):
        states, layout = hidden[0], batch.layout
    elif how.include_prompt and set(how.modes) <= _OF_RECTANGLES:
        return _join([_pool_padded(hidden, batch.real, mode) for mode in how.modes])
    else:
        states, layout = batch.real_tokens(hidden), _lay_out(batch.ids, batch.real)
    if how.include_prompt or not skip:
        return _join([_pool_packed(states, layout, mode) for mode in how.modes])
    return _join([_pool_without(states, layout, mode, skip) for mode in how.modes])


def _join(vectors: list[Tensor]) -> Tensor:
    import torch

    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def _pool_packed(states: Tensor, layout: Layout, mode: str) -> Tensor:
    match mode:
        case "cls":
            return states[layout.starts].float()
        case "lasttoken":
            return states[layout.cu_seqlens[1:] - 1].float()
        case "max":
            return max_by_sequence(states, layout)
        case "mean_sqrt_len_tokens":
            return mean_by_sequence(states, layout) * layout.cu_seqlens.diff()[:, None].sqrt()
        case "weightedmean":
            return _weighted(states, layout, (_places(layout) + 1).float())
    return mean_by_sequence(states, layout)


def _pool_without(states: Tensor, layout: Layout, mode: str, skip: int) -> Tensor:
    """As `_pool_packed`, without the first tokens of each item; zeros, or -inf of a maximum, where nothing is left."""
    places, lengths = _places(layout), layout.cu_seqlens.diff()
    kept = places >= skip
    match mode:
        case "cls":
            return states[layout.starts + (lengths > skip) * skip].float()
        case "lasttoken":
            return states[layout.cu_seqlens[1:] - 1].float() * (lengths > skip)[:, None]
        case "max":
            return max_by_sequence(states.float().masked_fill(~kept[:, None], float("-inf")), layout)
        case "mean_sqrt_len_tokens":
            left = (lengths - skip).clamp(min=0)[:, None]
            return _weighted(states, layout, kept.float()) * left.sqrt()
        case "weightedmean":
            return _weighted(states, layout, kept * (places + 1).float())
    return _weighted(states, layout, kept.float())


def _weighted(states: Tensor, layout: Layout, weights: Tensor) -> Tensor:
    """(B, H) means by the weights of (T,) tokens; zeros where these are all 0."""
    total = mean_by_sequence(weights[:, None], layout).clamp(min=1e-9)
    return mean_by_sequence(states.float() * weights[:, None], layout) / total


def _places(layout: Layout) -> Tensor:
    """(T,) where each token stands in its item."""
    import torch

    tokens = int(layout.lengths.sum())
    begins = torch.repeat_interleave(layout.starts, layout.cu_seqlens.diff(), output_size=tokens)
    return torch.arange(tokens, device=begins.device) - begins


def _lay_out(ids: Tensor, real: Tensor | None) -> Layout:
    """Where items lie once their real tokens are gathered."""
    import torch

    lengths = torch.full((len(ids),), ids.shape[1], device=ids.device) if real is None else real.sum(dim=1)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return Layout(ends.int(), lengths.cpu().numpy())


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
