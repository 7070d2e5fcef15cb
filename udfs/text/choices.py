"""The tokens of choices, as a model writes them after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from udfs.errors import SpecError
from udfs.text.codec import Codec

_SHOWN = 40  # characters of a choice
_ALIKE = 16  # so many choices tell how the tokenizer treats all of them


def encode_choices(codec: Codec, choices: Sequence[str], *, max_new_tokens: int) -> list[list[int]]:
    """Token ids of each choice: by itself, after a space and after a line's end, of which the model takes one.

    What a prompt ends with decides which of them is natural: an answer after `Category:` begins with a space, one after
    a chat's turn does not, and tokenizers of the kind of sentencepiece put a space of their own before a text.

    Raises:
        SpecError: The errors of `check_choices`.
    """
    plain = check_choices(codec, choices, max_new_tokens=max_new_tokens)
    others = codec.encode([f" {choice}" for choice in choices], special=False)
    if _after_line(codec, choices[:_ALIKE]) != plain[:_ALIKE]:
        others += _after_line(codec, choices)
    told = zip(others, [*choices, *choices], _decode(codec, others), strict=False)
    return plain + [ids for ids, choice, text in told if text == choice and len(ids) <= max_new_tokens]


def check_choices(codec: Codec, choices: Sequence[str], *, max_new_tokens: int) -> list[list[int]]:
    """Token ids of each choice by itself.

    Raises:
        SpecError: The tokenizer cannot write a choice, or it is longer than `max_new_tokens`.
    """
    plain = codec.encode(choices, special=False)
    for choice, ids, text in zip(choices, plain, _decode(codec, plain), strict=True):
        shown = repr(choice if len(choice) <= _SHOWN else f"{choice[:_SHOWN]}…")
        if text != choice:
            raise SpecError(f"choices has {shown}, which the model's tokenizer cannot write: it reads as {text!r}")
        if len(ids) > max_new_tokens:
            raise SpecError(f"choices has {shown}, of {len(ids)} tokens, but max_new_tokens is {max_new_tokens}")
    return plain


def _after_line(codec: Codec, choices: Sequence[str]) -> list[list[int]]:
    (line,) = codec.encode(["\n"], special=False)
    whole = codec.encode([f"\n{choice}" for choice in choices], special=False)
    return [ids[len(line) :] if ids[: len(line)] == line else [] for ids in whole]


def _decode(codec: Codec, ids: list[list[int]]) -> list[str]:
    return [text.strip() for text in codec.decode([np.array(i, dtype=np.int32) for i in ids])]
