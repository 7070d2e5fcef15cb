"""Attention over the cache: new tokens of many sequences in one row, each sees its own sequence's past.

As `udfs.model.attention`, a function in transformers' registry, and no model's code is changed. What the function needs
to know of the step comes as an extra keyword of the model's call. Keys and values go into an `Arena`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.step import FixedStep, Group, Long, Spans, Step
from udfs.model.attention import attend_by_kernel, kernel_takes, refuse_mask

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHED = "gristmill_cached"


def register_cached() -> None:
    """Make `attn_implementation=CACHED` known to transformers, with a mask function that makes no mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(CACHED, attend_cached)
    AttentionMaskInterface.register(CACHED, refuse_mask)


def goes_by_kernel(device: str, precision: str, head_width: int) -> bool:
    """Whether a GPU's kernel attends over the cache."""
    return device.startswith("cuda") and kernel_takes(precision, head_width)


def attend_cached(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    step: Step | FixedStep | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Put new keys and values into the cache, and attend to all that each sequence has there.

    Args:
        module: The layer that asks; its `layer_idx` names it.
        query: (1, heads, T, D); key and value (1, fewer heads, T, D).
        attention_mask: None.
        scaling: Factor of the products; None is 1 / sqrt(D).
        sliding_window: A token sees those before it at a distance below it; None sees all.
        softcap: Bounds the products by a tanh.
        step: Which sequences the tokens belong to.
        s_aux: None; attention with sinks is not known here.

    Returns:
        (1, T, heads, D), and None for the weights, which nobody makes.

    Raises:
        ValueError: The step did not arrive, the tokens are padded, or the step is recorded and not by a kernel.
    """
    if step is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("attention over the cache was given no step, or a padded batch")
    if s_aux is not None:
        raise ValueError("attention with sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    keys, values = step.arena.layer(module.layer_idx, k)  # type: ignore[arg-type]
    keys.index_copy_(0, step.places, k)
    values.index_copy_(0, step.places, v)
    ask = _Ask(keys, values, scale, sliding_window, softcap)
    if softcap is None and goes_by_kernel(q.device.type, str(q.dtype).removeprefix("torch."), q.shape[-1]):
        return _attend_by_kernel(q, ask, step.spans).unsqueeze(0), None
    if not isinstance(step, Step):
        raise ValueError("a step that is recorded needs the kernel of a GPU")
    mixed = q.new_empty(q.shape)
    for number, group in enumerate(step.groups):
        _attend_group(q, mixed, ask, group, step, number)
    for piece in step.longer:
        _attend_long(q, mixed, ask, piece, step)
    return mixed.unsqueeze(0), None


@dataclass(frozen=True)
class _Ask:
    """A layer's cache and how it weighs.

    Args:
        keys, values: (tokens, heads, D).
    """

    keys: Tensor
    values: Tensor
    scale: float
    window: int | None
    softcap: float | None


def _attend_group(q: Tensor, mixed: Tensor, ask: _Ask, group: Group, step: Step, number: int) -> None:
    """A few tokens each: heads that share keys stand side by side with the tokens of a query, so that none is repeated.

    q and mixed: (T, heads, D).
    """
    import torch

    (slots, width), heads = group.rows.shape, ask.keys.shape[1]
    shared = q.shape[1] // heads
    rows, taken, busy, mask = step.once(
        ("group", number, ask.window),
        lambda: (
            torch.from_numpy(group.rows.ravel()).to(q.device),
            torch.from_numpy(group.rows[group.busy]).to(q.device),
            torch.from_numpy(np.flatnonzero(group.busy)).to(q.device),
            _mask_lengths(group.lengths, ask.window, like=q).repeat(1, 1, shared, 1),
        ),
    )
    capacity, longest = group.slab.capacity, int(group.lengths.max())
    start = group.slab.start + group.first * capacity
    k, v = (
        part[start : start + slots * capacity].unflatten(0, (slots, capacity))[:, :longest].transpose(1, 2)
        for part in (ask.keys, ask.values)
    )
    asked = q[rows].view(slots, width, heads, shared, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
    found = _attend(asked, k, v, mask, ask).unflatten(2, (shared, width)).permute(0, 3, 1, 2, 4)
    mixed[taken] = found.reshape(slots * width, *q.shape[1:])[busy]


def _attend_long(q: Tensor, mixed: Tensor, ask: _Ask, piece: Long, step: Step) -> None:
    """Many tokens of one sequence."""
    start, stop = piece.first, piece.first + piece.count
    where = slice(piece.slot.start, piece.slot.start + piece.past + piece.count)
    k, v = (part[where].transpose(0, 1) for part in (ask.keys, ask.values))
    shared = q.shape[1] // ask.keys.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
    mask = step.once(("long", start, ask.window), lambda: _mask_causal(piece.count, piece.past, ask.window, like=q))
    mixed[start:stop] = _attend(q[start:stop].transpose(0, 1)[None], k[None], v[None], mask, ask)[0].transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ask: _Ask) -> Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    if ask.softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=ask.scale)
    weights = ((q @ k.transpose(-1, -2)) * (ask.scale / ask.softcap)).tanh() * ask.softcap
    return (weights + mask).float().softmax(-1).to(q.dtype) @ v


def _mask_lengths(lengths: np.ndarray, window: int | None, *, like: Tensor) -> Tensor:
    """(S, 1, W, longest) 0 where a token sees, -inf elsewhere.

    lengths: (S, W) of what each sees.
    """
    places = np.arange(lengths.max())
    seen = places < lengths[..., None]
    if window is not None:
        seen &= places >= lengths[..., None] - window
    return _additive(seen[:, None], like)


def _mask_causal(count: int, past: int, window: int | None, *, like: Tensor) -> Tensor:
    """(count, past + count) 0 where a new token sees, -inf elsewhere."""
    distance = np.arange(past, past + count)[:, None] - np.arange(past + count)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return _additive(seen, like)


def _additive(seen: np.ndarray, like: Tensor) -> Tensor:
    import torch

    return torch.from_numpy(np.where(seen, 0.0, -np.inf).astype(np.float32)).to(like.device, like.dtype)


def _attend_by_kernel(q: Tensor, ask: _Ask, spans: Spans) -> Tensor:
    """All sequences in one call: each begins in the cache where its slot does, and is as long as it has become."""
    where = spans.news, spans.starts, spans.most_new, spans.longest
    return attend_by_kernel(
        q, ask.keys, ask.values, *where, scale=ask.scale, window=ask.window, causal=True, used_k=spans.lengths
    )
