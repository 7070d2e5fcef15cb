"""A text to its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa

from udfs.model.files import ModelFiles
from udfs.model.pooling import read_pooling
from udfs.spec import Options, ScoreSpec
from udfs.tasks.chunks import pool_by_unit
from udfs.text.tokenizing import Tokenized, Tokenizer, make_tokenizer


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionOptions(Options):
    """What feature-extraction takes: what all tasks share."""

    task: ClassVar[str] = "feature-extraction"


class FeatureExtraction:
    """Token states of an encoder, pooled as the model's sentence-transformers files say.

    A text that is read in chunks has the mean of its chunks' vectors, weighted by their tokens.
    """

    fields: tuple[pa.Field, ...] = (pa.field("embedding", pa.list_(pa.float32())),)
    units_per_text = 1
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec[Options], files: ModelFiles) -> None:
        self._spec, self._files = spec, files
        self.pooling = read_pooling(files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files, before=self.pooling.prompt, lowercase=self.pooling.lowercase)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        vectors = pool_by_unit(outputs, tokenized.items.lengths, tokenized.units)
        if self.pooling.normalize and self._spec.overflow == "chunk":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
        return [pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors).reshape(-1)))]
