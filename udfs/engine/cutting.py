"""Micro-batches cut by tokens."""

from __future__ import annotations

import numpy as np

from udfs.wire.items import padded_length

_LEAST_REAL_SHARE = 0.93
_MOST_PACKED = 65_535  # items: a GPU's attention kernel has so many rows of blocks at most


def fit_batch(descending: np.ndarray, *, max_batch_tokens: int, min_batch_tokens: int, pad_multiple: int) -> int:
    """How many of the longest items make the next micro-batch.

    The longest come first, so that memory peaks at once and is reused; neighbours differ little in length, so that
    padding is small. A micro-batch that keeps the device busy ends early where more items would make it mostly
    padding. An item that is alone above the budget makes a micro-batch of its own.

    Args:
        descending: (N,) tokens of one or more items, longest first.
        max_batch_tokens: Bound on items times padded length.
        min_batch_tokens: From this size on, a micro-batch ends before padding passes 7 % of it.
        pad_multiple: Lengths are rounded up to a multiple of it; 0 where micro-batches are packed: then the budget
            bounds the tokens themselves.
    """
    if not pad_multiple:
        fits = int(np.searchsorted(np.cumsum(descending), max_batch_tokens, side="right"))
        return min(max(1, fits), _MOST_PACKED)
    width = padded_length(int(descending[0]), pad_multiple)
    taken = descending[: max(1, max_batch_tokens // width)]
    sizes = np.arange(1, len(taken) + 1) * width
    dense = (np.cumsum(taken) >= _LEAST_REAL_SHARE * sizes) | (sizes <= min_batch_tokens)
    return int(np.flatnonzero(dense)[-1]) + 1 if dense.any() else 1


def batch_tokens(lengths: np.ndarray, multiple: int) -> int:
    """Tokens of a micro-batch of items of these lengths, padding included; multiple 0 packs them."""
    return padded_length(int(lengths.max()), multiple) * len(lengths) if multiple else int(lengths.sum())


def split_equal(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices into `lengths`, cut into groups of one length each, the shortest first."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
