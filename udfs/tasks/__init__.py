"""The tasks, one file each. A task is texts -> items, what the model's output means, outputs -> result columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from udfs.errors import SpecError
from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tokenizing import Tokenized

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch, BatchMaker

    Forward = Callable[[Batch], Tensor]


class Task(Protocol):
    """What a task file provides. One is made in the worker and one in the engine; neither holds a model.

    Attributes:
        fields: Result columns of its own, in order.
        units_per_text: Units that `tokenize` makes of each text: 1, or the number of labels.
        per_token: Outputs are a row a token, not a row an item.
        generates: Outputs are tokens that a model has written.
    """

    fields: tuple[pa.Field, ...]
    units_per_text: int
    per_token: bool
    generates: bool

    def tokenize(self, texts: list[str]) -> Tokenized:
        """Worker: texts to items, `units_per_text` units for each text, the text's units side by side."""
        ...

    def load(self, device: str, precision: str, make_batch: BatchMaker) -> Forward:
        """Engine: load the model, if it does not write, for packed or padded micro-batches, as `make_batch` makes them.

        Returns:
            A function from micro-batch to (B, D) outputs on the device, in the batch's order; (t, D), a row a real
            token, of a task that answers by token.
        """
        ...

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        """Worker: outputs of items to one array of N texts for each of `fields`.

        Args:
            outputs: (items, D) float32, finite, zeros where an item has no answer; (T, D) of a task that answers by
                token. A task that generates has `TextGeneration.read` instead.
            tokenized: What `tokenize` made: which items are whose, those of a long text's chunks side by side.
        """
        ...


def make_task(spec: ScoreSpec, files: ModelFiles) -> Task:
    """The task that a spec names, for its model.

    Raises:
        ModelError: The model is of another kind than the task needs.
        SpecError: There is no such task.
    """
    from udfs.tasks.feature_extraction import FeatureExtraction
    from udfs.tasks.summarization import Summarization
    from udfs.tasks.text_classification import TextClassification
    from udfs.tasks.text_generation import TextGeneration
    from udfs.tasks.token_classification import TokenClassification
    from udfs.tasks.translation import Translation
    from udfs.tasks.zero_shot_classification import make_zero_shot

    match spec.task:
        case "feature-extraction":
            return FeatureExtraction(spec, files)
        case "text-classification":
            return TextClassification(spec, files)
        case "zero-shot-classification":
            return make_zero_shot(spec, files)
        case "token-classification":
            return TokenClassification(spec, files)
        case "text-generation":
            return TextGeneration(spec, files)
        case "summarization":
            return Summarization(spec, files)
        case "translation":
            return Translation(spec, files)
    raise SpecError(f"there is no task {spec.task!r}")
