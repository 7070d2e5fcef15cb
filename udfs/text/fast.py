"""Libraries that tokenize in a fraction of the time of `tokenizers`, each for kinds of tokenizers.

`tokie` is for WordPiece, Unigram and BPE with byte fallback, `fastokens` for BPE of bytes (GPT-2, Llama 3, Qwen), where
`tokie` cuts words otherwise in rare places. Whether one is equal to `tokenizers` for a tokenizer is tried by
`udfs.text.holding`; nothing here promises it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from udfs.wire.items import Items


class Fast(Protocol):
    """A fast tokenizer, which neither cuts nor pads, and puts nothing around a text."""

    def encode(self, texts: Sequence[str]) -> Items:
        """Items of texts, one each, which may be empty here."""

    def count(self, text: str) -> int:
        """Tokens of a text."""


class Tokie:
    """`tokie` of a tokenizer.json."""

    def __init__(self, file: Path) -> None:
        import tokie

        self._made: Any = tokie.Tokenizer.from_json(str(file))
        self._made.no_padding()
        self._made.no_truncation()

    def encode(self, texts: Sequence[str]) -> Items:
        ids, lengths = self._made.encode_batch_flat(list(texts), False)
        return Items(ids.view(np.int32), np.concatenate([[0], np.cumsum(lengths.astype(np.int64))]))

    def count(self, text: str) -> int:
        return int(self._made.count_tokens(text))


class Fastokens:
    """`fastokens` of a tokenizer.json."""

    def __init__(self, file: Path) -> None:
        import fastokens

        self._made: Any = fastokens.Tokenizer.from_file(str(file))
        self._made.no_padding()
        self._made.no_truncation()

    def encode(self, texts: Sequence[str]) -> Items:
        ids, offsets = self._made.encode_batch_flat(list(texts), add_special_tokens=False)
        return Items(np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64))

    def count(self, text: str) -> int:
        return len(self._made.encode(text, add_special_tokens=False).ids)


_BY_NAME: dict[str, Callable[[Path], Fast]] = {"tokie": Tokie, "fastokens": Fastokens}


def choose_fast(file: Path) -> str | None:
    """Which library may be as good as `tokenizers` for a tokenizer.json; None for kinds that none is known for."""
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    model = told.get("model") or {}
    match model.get("type"):
        case "WordPiece" | "Unigram":
            return "tokie"
        case "BPE":
            by_bytes = '"ByteLevel"' in json.dumps(told.get("pre_tokenizer"))
            return "fastokens" if by_bytes else "tokie" if model.get("byte_fallback") else None
    return None


def load_fast(name: str, file: Path) -> Fast:
    """A library, by what `choose_fast` calls it."""
    return _BY_NAME[name](file)
