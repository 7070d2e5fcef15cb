"""Outputs of items, brought together by the units that the items are parts of."""

from __future__ import annotations

from typing import Literal

import numpy as np


def pool_by_unit(
    outputs: np.ndarray, weights: np.ndarray, units: np.ndarray, *, how: Literal["mean", "max"] = "mean"
) -> np.ndarray:
    """One output a unit: the mean of its items' outputs, weighted by their tokens, or the largest of each number.

    Args:
        outputs: (N, D) float32, one row an item.
        weights: (N,) tokens an item.
        units: (U + 1,) where each unit's items begin.
        how: `mean` or `max`.

    Returns:
        (U, D) float32; zeros for a unit without items.
    """
    counts = np.diff(units)
    if len(outputs) == len(counts) and (counts == 1).all():
        return outputs
    pooled = np.zeros((len(counts), outputs.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return pooled
    starts = units[:-1][filled]
    if how == "max":
        pooled[filled] = np.maximum.reduceat(outputs, starts, axis=0)
    else:
        total = np.add.reduceat(outputs * weights[:, None], starts, axis=0)
        pooled[filled] = total / np.add.reduceat(weights, starts)[:, None]
    return pooled


def sum_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(U,) sums of the values of each unit's items; 0 for a unit without items."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[units])
