"""What a task file provides: texts -> items, the outputs of items -> result columns."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

from udfs.text.tokenizing import Tokenized


class Task(Protocol):
    """The worker half of a task. It holds no model: the engine half is in `udfs.engine.forward`.

    A task whose model writes is a `udfs.tasks.writing.Writing`.

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
        """Texts to items, `units_per_text` units for each text, the text's units side by side."""
        ...

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        """Outputs of items to one array of N texts for each of `fields`.

        Args:
            outputs: (items, D) float32, finite, zeros where an item has no answer; (T, D) of a task that answers by
                token. A task that generates has `Writing.read` instead.
            tokenized: What `tokenize` made: which items are whose, those of a long text's chunks side by side.
        """
        ...
