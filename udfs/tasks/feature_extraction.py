"""A text to its embedding."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from udfs.batching import pool_by_unit
from udfs.loading import load_transformer
from udfs.models import ModelFiles
from udfs.pooling import pool, read_pooling
from udfs.spec import ScoreSpec
from udfs.tokenizing import Tokenized, Tokenizer, make_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch, BatchMaker
    from udfs.tasks import Forward


class FeatureExtraction:
    """Token states of an encoder, pooled as the model's sentence-transformers files say.

    A text that is read in chunks has the mean of its chunks' vectors, weighted by their tokens.
    """

    fields: tuple[pa.Field, ...] = (pa.field("embedding", pa.list_(pa.float32())),)
    units_per_text = 1
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        self._spec, self._files = spec, files
        self._pooling = read_pooling(files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files, before=self._pooling.prompt, lowercase=self._pooling.lowercase)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts)

    def load(self, device: str, precision: str, make_batch: BatchMaker) -> Forward:
        # of T5 and its kin, the encoder alone
        config = self._files.config
        encoder = config.get("is_encoder_decoder") or "T5EncoderModel" in (config.get("architectures") or [])
        kind = "AutoModelForTextEncoding" if encoder else "AutoModel"
        model = load_transformer(kind, self._files, device=device, precision=precision, packed=make_batch.packed)

        def forward(batch: Batch) -> Tensor:
            return pool(model(**batch.inputs()).last_hidden_state, batch, pooling=self._pooling)

        return forward

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        vectors = pool_by_unit(outputs, tokenized.items.lengths, tokenized.units)
        if self._pooling.normalize and self._spec.overflow == "chunk":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
        return [pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors).reshape(-1)))]
