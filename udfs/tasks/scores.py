"""Result columns of every task that gives each label a score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from udfs.spec import Options, ScoreSpec, option
from udfs.tasks.chunks import pool_by_unit
from udfs.text.tokenizing import Tokenized

ChunkPooling = Literal["mean", "max"]
SCORE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("scores", pa.map_(pa.string(), pa.float32())),
)


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Options):
    """What each task takes that gives labels scores."""

    chunk_pooling: ChunkPooling = option(
        "mean",
        "A text in chunks has the `mean` of their scores, by length, or each label's largest (`max`).",
        for_engine=False,
    )

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        if self.chunk_pooling != "mean" and spec.overflow != "chunk":
            yield f"chunk_pooling belongs to {self.task} with overflow 'chunk'"


def labels_option() -> tuple[str, ...]:
    """The labels that a job gives."""
    return option(
        (),
        "The candidates, in the order of the answer's scores. Of text-classification for hosted engines alone, whose "
        "models have no labels of their own; these tell the label, and no scores.",
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities that sum to 1 over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability for each logit on its own."""
    return 0.5 * (1 + np.tanh(0.5 * logits))  # the usual form overflows below -88


def pool_chunks(scores: np.ndarray, tokenized: Tokenized, options: ScoringOptions) -> np.ndarray:
    """(items, L) scores of texts and of the chunks of long ones to (units, L), as the options say."""
    return pool_by_unit(scores, tokenized.items.lengths, tokenized.units, how=options.chunk_pooling)


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
