"""From logits to tokens: the likeliest, or one that is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from udfs.generation.sequences import Sequence

if TYPE_CHECKING:
    from torch import Tensor

_LIKELY, _CHUNK = 64, 64  # tokens among which nearly all draws end, and those of which one maximum is looked at


def find_best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row, and whether the row has values that are no numbers.

    On a CPU by the maxima of chunks, which reads the logits once and as they are: a plain argmax of 64 rows of 49,152
    took six times as long.

    Args:
        logits: (R, V) in any precision.

    Returns:
        (R,) int64, the first of several that are as likely; (R,) bool.
    """
    import torch

    size = logits.shape[-1]
    chunks = size // _CHUNK
    if chunks < 2 or logits.is_cuda:
        return logits.argmax(-1), logits.amax(-1).isnan()
    maxima = logits[:, : chunks * _CHUNK].unflatten(-1, (chunks, _CHUNK)).amax(-1)
    if size > chunks * _CHUNK:
        maxima = torch.cat([maxima, logits[:, chunks * _CHUNK :].amax(-1, keepdim=True)], -1)
    which = maxima.argmax(-1, keepdim=True)
    begins = (which * _CHUNK).clamp_max(size - _CHUNK)
    held = logits.gather(1, begins + torch.arange(_CHUNK, device=logits.device))
    return (begins + held.argmax(-1, keepdim=True))[:, 0], maxima.gather(1, which)[:, 0].isnan()


def draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """One token each, by a number of its sequence's own, each by its own temperature, top_k and top_p.

    Tokens are put in order among the likeliest alone, and among all of them where the draw may end beyond these: to
    sort a whole vocabulary takes longer than a step of a small model.

    Source: transformers, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, in that order.
    """
    import torch

    options, device = [sequence.way.options for sequence in sequences], logits.device
    weights = logits / torch.tensor([[o.temperature] for o in options], device=device)
    weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    whole = weights.sum(-1, keepdim=True)
    drawn = torch.tensor([[s.draws.random() if s.draws else 0.0] for s in sequences], device=device)
    top_k = torch.tensor([[o.top_k or logits.shape[-1]] for o in options], device=device)
    top_p = torch.tensor([[o.top_p] for o in options], device=device)
    shares, tokens = _find_likeliest(weights)
    shares = shares / whole
    within, covers = top_k <= shares.shape[-1], shares.sum(-1, keepdim=True)
    settled = (within | ((top_p < 1.0) & (covers >= top_p)) | ((top_p >= 1.0) & (drawn < covers)))[:, 0]
    picked = _take(shares, tokens, drawn, top_k, top_p, whole=torch.where(within, torch.nan, 1.0))
    if not settled.all():
        rest = ~settled
        shares, tokens = (weights[rest] / whole[rest]).sort(-1, descending=True)
        picked[rest] = _take(shares, tokens, drawn[rest], top_k[rest], top_p[rest])
    return picked


def _find_likeliest(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The largest weights of each row, descending, and whose they are.

    They are in the chunks with the largest maxima, which are found several times as fast.
    """
    import torch

    rows, size = weights.shape
    chunks = size // _CHUNK
    if chunks <= _LIKELY:
        largest, places = weights.topk(min(_LIKELY, size), -1)
        return largest, places
    body = weights[:, : chunks * _CHUNK].unflatten(-1, (chunks, _CHUNK))
    which = body.amax(-1).topk(_LIKELY, -1).indices
    held = body.gather(1, which[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    where = (which[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=weights.device)).flatten(1)
    if size > chunks * _CHUNK:
        held = torch.cat([held, weights[:, chunks * _CHUNK :]], -1)
        rest = torch.arange(chunks * _CHUNK, size, device=weights.device).expand(rows, -1)
        where = torch.cat([where, rest], -1)
    largest, places = held.topk(_LIKELY, -1)
    return largest, where.gather(1, places)


def _take(
    shares: Tensor, tokens: Tensor, drawn: Tensor, top_k: Tensor, top_p: Tensor, whole: Tensor | None = None
) -> Tensor:
    """(B,) tokens, by numbers that are drawn.

    Args:
        shares: (B, K) of the likeliest tokens, descending.
        tokens: (B, K) which those are.
        drawn: (B, 1) from 0 to 1.
        top_k, top_p: (B, 1).
        whole: (B, 1) what all tokens together have, where K of them are not all; nan takes the sum of those kept.
    """
    import torch

    places = torch.arange(shares.shape[-1], device=shares.device)
    shares = shares.masked_fill(places >= top_k, 0.0)
    sums = shares.cumsum(-1)
    total = sums[:, -1:] if whole is None else torch.where(whole.isnan(), sums[:, -1:], whole)
    kept = ((sums - shares) < top_p * total) | (top_p >= 1.0)
    shares = shares.masked_fill(~kept, 0.0)
    sums = shares.cumsum(-1)
    total = torch.where(top_p < 1.0, sums[:, -1:], total)
    found = torch.searchsorted(sums, (drawn * total).to(sums.dtype), right=True)
    last = (shares > 0).sum(-1, keepdim=True) - 1
    return tokens.gather(1, torch.minimum(found, last).clamp_min(0))[:, 0]
