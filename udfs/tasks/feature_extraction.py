"""A text to its embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from udfs.errors import ModelError
from udfs.model.embedding import read_embedding, table_shape
from udfs.model.files import ModelFiles
from udfs.model.prompts import read_prompt
from udfs.spec import Options, ScoreSpec, option
from udfs.tasks.chunks import pool_by_unit
from udfs.tasks.quantizing import TYPES, Quantization, Ranges, check_ranges, quantize
from udfs.text.tokenizing import Tokenized, Tokenizer, make_tokenizer


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionOptions(Options):
    """What feature-extraction takes beside what all tasks share."""

    task: ClassVar[str] = "feature-extraction"

    prompt_name: str | None = option(
        None,
        "Which of the prompts that an embedding model's files name is put before each text, as `query` or `document`; "
        "without it and without `prompt`, the model's default, which most have not.",
    )
    prompt: str | None = option(
        None, 'What is put before each text, as it is, as `"query: "`; `""` for nothing, whatever the default is.'
    )
    dimensions: int | None = option(
        None,
        "Keep so many numbers of each vector, its first (Matryoshka); normalised again, if the model's vectors are.",
        least=1,
        for_engine=False,
    )
    quantization: Quantization = option(
        "float32",
        "What an embedding is in the output: `float32`, an array of floats; `float16`, binary, two bytes a number, "
        "little-endian; `int8`, an array of bytes, by `ranges`; `binary` or `ubinary`, binary, a bit a number, as "
        "sentence-transformers packs them.",
        for_engine=False,
    )
    ranges: Ranges | None = option(
        None,
        "Of `int8`: two lists, the least and the largest value of each number; what is beyond them takes their end. "
        "Without it, a job measures a sample of its first increment, and keeps that with its output for all that come.",
        for_engine=False,
        check=check_ranges,
    )

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        if self.prompt is not None and self.prompt_name is not None:
            yield "prompt and prompt_name are two ways to say what is put before each text; give one"
        if self.ranges is not None and self.quantization != "int8":
            yield f"ranges belongs to quantization 'int8', not to {self.quantization!r}"

    def unread_by_engine(self, files: Any) -> frozenset[str]:
        """A prompt is a part of the text, unless its states are left out of the vector."""
        return frozenset() if read_embedding(files).leaves_prompt_out else frozenset({"prompt", "prompt_name"})


class Embeds:
    """What tasks share whose model makes a vector of each text.

    Args:
        spec: What is asked.
        files: The model.
        prompt: What is put before each text.

    Attributes:
        embedding: How the vectors are made.
    """

    units_per_text = 1
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec[Any], files: ModelFiles, *, prompt: str) -> None:
        self._spec, self._files, self._prompt = spec, files, prompt
        self.embedding = read_embedding(files)
        if files.is_static:
            self._check_table()

    def _check_table(self) -> None:
        """Each token of the tokenizer has a vector."""
        rows, _ = table_shape(self._files)
        if (tokens := self.tokenizer.vocabulary) > rows:
            raise ModelError(
                f"model {self._files.name!r} has vectors for {rows} tokens, and its tokenizer knows {tokens}; the two "
                "are not of one model"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files, before=self._prompt, lowercase=self.embedding.lowercase)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts)


class FeatureExtraction(Embeds):
    """Token states of an encoder, or vectors of tokens, as the model's sentence-transformers files make one of them.

    A text that is read in chunks has the mean of its chunks' vectors, weighted by their tokens.
    """

    def __init__(self, spec: ScoreSpec[FeatureExtractionOptions], files: ModelFiles) -> None:
        options = spec.options
        super().__init__(spec, files, prompt=read_prompt(files, name=options.prompt_name, prompt=options.prompt))
        self._options = options
        self.fields: tuple[pa.Field, ...] = (pa.field("embedding", TYPES[options.quantization]),)
        if self.embedding.width is not None:
            self._check_width(self.embedding.width)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        self._check_width(outputs.shape[1])
        vectors = pool_by_unit(outputs, tokenized.items.lengths, tokenized.units)
        vectors = vectors[:, : self._options.dimensions]
        if self.embedding.is_unit and (self._spec.overflow == "chunk" or self._options.dimensions):
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        return [quantize(vectors, self._options.quantization, self._options.ranges)]

    def _check_width(self, width: int) -> None:
        asked, ranges = self._options.dimensions, self._options.ranges
        if asked is not None and asked > width:
            raise ModelError(f"dimensions is {asked}, but model {self._files.name!r} makes vectors of {width} numbers")
        if ranges is not None and len(ranges[0]) != (asked or width):
            raise ModelError(f"ranges has {len(ranges[0])} numbers, but the vectors will have {asked or width}")
