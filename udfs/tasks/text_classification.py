"""A text to one of the labels that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.scores import SCORE_FIELDS, ScoringOptions, pool_chunks, score_columns, sigmoid, softmax
from udfs.text.tokenizing import Tokenized, Tokenizer, make_tokenizer


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions(ScoringOptions):
    """What text-classification takes."""

    task: ClassVar[str] = "text-classification"


class TextClassification:
    """A sequence classifier; its config's `problem_type` decides what a logit means.

    Softmax over the labels; or a sigmoid each, for several labels at once and for a single one; or the bare value,
    for a regression.

    Source: transformers, `TextClassificationPipeline`.
    """

    fields = SCORE_FIELDS
    units_per_text = 1
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec[TextClassificationOptions], files: ModelFiles) -> None:
        check_is_classifier(files, spec.task)
        self._spec, self._files = spec, files
        self.labels = read_labels(files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        return score_columns(pool_chunks(self._score(outputs), tokenized, self._spec.options), self.labels)

    def _score(self, logits: np.ndarray) -> np.ndarray:
        kind = self._files.config.get("problem_type")
        if kind == "regression":
            return logits
        return sigmoid(logits) if kind == "multi_label_classification" or len(self.labels) == 1 else softmax(logits)


def check_is_classifier(files: ModelFiles, task: str) -> None:
    """Refuse a model without a classification head: transformers would give it a random one."""
    kinds = files.config.get("architectures") or ["an unnamed architecture"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"model {files.name!r} is {', '.join(kinds)}, which has no classification head; "
            f"{task} needs a …ForSequenceClassification"
        )


def read_labels(files: ModelFiles) -> tuple[str, ...]:
    """The model's labels in the order of its logits."""
    named = files.config.get("id2label") or {}
    count = len(named) or int(files.config.get("num_labels", 2))
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count))
