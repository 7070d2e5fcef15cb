"""Whether a way of writing gives the logits that transformers' own gives each text alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from udfs.generation.picking import Picker, Sequence
from udfs.tasks.writing_options import WritingOptions
from udfs.wire.items import Items
from udfs.wire.written import LENGTH

STEPS = 3
_ALIKE = 0.95  # correlation of logits in half precision, which alone has carried a plain run to 0.98
_CLOSE = 1e-3  # of the largest logit, in float32


class Watch(Picker):
    """Picks the same tokens whatever the logits are, and keeps these.

    Attributes:
        seen: By a text's number of tokens, the logits of its steps, (V,) each.
    """

    def __init__(self) -> None:
        super().__init__(WritingOptions(max_new_tokens=STEPS), ends=frozenset(), tokenizer=None)
        self.seen: dict[int, list[np.ndarray]] = {}

    def pick(self, logits: Any, sequences: list[Sequence]) -> None:
        for row, sequence in zip(logits.float().cpu().numpy(), sequences, strict=True):
            self.seen.setdefault(len(sequence.prompt), []).append(row)
            sequence.ids.append(int(sequence.prompt[len(sequence.ids) % len(sequence.prompt)]))
            if len(sequence.ids) >= STEPS:
                sequence.finish = LENGTH


def watch(write: Callable[[Watch], Any]) -> np.ndarray:
    """(N, steps, V) logits of what is written with a picker, by ascending lengths of its texts, each another."""
    picker = Watch()
    write(picker)
    return np.array([picker.seen[length] for length in sorted(picker.seen)])


def is_alike(found: np.ndarray, wanted: np.ndarray, *, precision: str) -> bool:
    """Whether logits are those that are wanted, within the rounding of a precision."""
    if found.shape != wanted.shape or not (np.isfinite(found) == np.isfinite(wanted)).all():
        return False
    found, wanted = (np.where(np.isfinite(wanted), part, 0.0) for part in (found, wanted))
    if precision == "float32":
        return bool(np.abs(found - wanted).max() <= _CLOSE * np.abs(wanted).max())
    pairs = zip(found.reshape(-1, found.shape[-1]), wanted.reshape(-1, wanted.shape[-1]), strict=True)
    return min(np.corrcoef(a, b)[0, 1] for a, b in pairs) >= _ALIKE


def probe(avoid: Collection[int]) -> Items:
    """Two short texts of different lengths.

    Args:
        avoid: Tokens that are not in them: those that end an answer.
    """
    tokens = np.array([token for token in range(3, 14 + len(avoid)) if token not in avoid][:11], dtype=np.int32)
    return Items(tokens[np.arange(14) * 5 % len(tokens)], np.array([0, 9, 14]))
