"""Result columns of every task that gives each label a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from udfs.batching import pool_by_unit
from udfs.spec import ScoreSpec
from udfs.tokenizing import Tokenized

SCORE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("scores", pa.map_(pa.string(), pa.float32())),
)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities that sum to 1 over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability for each logit on its own."""
    return 0.5 * (1 + np.tanh(0.5 * logits))  # the usual form overflows below -88


def pool_chunks(scores: np.ndarray, tokenized: Tokenized, spec: ScoreSpec) -> np.ndarray:
    """(items, L) scores of texts and of the chunks of long ones to (units, L), as the spec pools them."""
    return pool_by_unit(scores, tokenized.items.lengths, tokenized.units, how=spec.chunk_pooling)


def score_columns(scores: np.ndarray, labels: Sequence[str]) -> list[pa.Array]:
    """Arrays for SCORE_FIELDS.

    Args:
        scores: (N, L) float32.
        labels: L names.
    """
    best = scores.argmax(axis=1)
    names = pa.array(labels, pa.string())
    offsets = np.arange(len(scores) + 1, dtype=np.int32) * len(labels)
    flat = pa.array(np.ascontiguousarray(scores, dtype=np.float32).reshape(-1))
    keys = names.take(pa.array(np.tile(np.arange(len(labels)), len(scores))))
    top = scores[np.arange(len(scores)), best].astype(np.float32)
    return [names.take(pa.array(best)), pa.array(top), pa.MapArray.from_arrays(offsets, keys, flat)]
