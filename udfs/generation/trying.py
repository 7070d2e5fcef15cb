"""Whether a way of writing gives the logits that transformers' own gives each text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from udfs.generation.found import Found
from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence, retell
from udfs.model.files import ModelFiles
from udfs.tasks.writing_options import WritingOptions
from udfs.text.codec import load_codec
from udfs.text.tokenizing import join_ids
from udfs.wire.items import Items
from udfs.wire.written import LENGTH

STEPS = 3
_TEXTS, _TOKENS = ("The kettle boils within three minutes.", "Wir kommen um 12 Uhr an."), (9, 5)
_ALIKE = 0.95  # correlation of logits in half precision, which alone has carried a plain run to 0.98
_CLOSE = 1e-3  # of the largest logit, in float32


class Watch(Picker):
    """Picks the same tokens whatever the logits are, and keeps these.

    Args:
        ends: Tokens that are not picked.

    Attributes:
        seen: By a text's number of tokens, the logits of its steps, (V,) each.
    """

    def __init__(self, ends: frozenset[int]) -> None:
        super().__init__(WritingOptions(max_new_tokens=STEPS), ends=frozenset(), tokenizer=None)
        self.seen: dict[int, list[np.ndarray]] = {}
        self._forced = [token for token in range(3, 3 + STEPS + len(ends)) if token not in ends]

    def take(self, found: Found, sequences: list[Sequence], told: np.ndarray, **_: Any) -> bool:
        for row, sequence in zip(found.logits.float().cpu().numpy(), sequences, strict=True):
            self.seen.setdefault(len(sequence.prompt), []).append(row)
            sequence.ids.append(self._forced[len(sequence.ids)])
            if len(sequence.ids) >= STEPS:
                sequence.finish = LENGTH
        retell(told, [*range(len(sequences))], sequences)
        return False


def watch(write: Callable[[Watch], Any], *, ends: frozenset[int]) -> np.ndarray:
    """(N, steps, V) logits of what is written with a picker, by ascending lengths of its texts, each another."""
    picker = Watch(ends)
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


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within it, what a model holds in half precision is in float32; afterwards it is as it was, to the last bit."""
    import torch

    halves = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)}
    kinds = {key: tensor.dtype for key, tensor in halves.items()}
    try:
        for tensor in halves.values():
            tensor.data = tensor.data.float()
        yield
    finally:
        for key, tensor in halves.items():
            tensor.data = tensor.data.to(kinds[key])


def make_probe(files: ModelFiles, model: Any) -> Items:
    """Two short texts of different lengths, as its tokenizer has them; any tokens for what is too short."""
    known = model.get_input_embeddings().num_embeddings
    parts = []
    for ids, length in zip(load_codec(files).encode(_TEXTS, special=True), _TOKENS, strict=True):
        found = [token for token in ids if token < known][:length]
        parts.append(found if len(found) == length else [token % known for token in range(3, 3 + length)])
    return Items(*join_ids(parts))
