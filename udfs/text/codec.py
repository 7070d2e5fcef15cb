"""Texts to tokens and back, for models that write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from udfs.model.files import ModelFiles
from udfs.text.splitting import Splitter
from udfs.text.tokenizing import load_backend

# Tokenizers of these wear a source language, or have a vocabulary for each side: only transformers' own know how.
_BY_TRANSFORMERS = {"marian", "m2m_100", "mbart"}


class Codec(Protocol):
    """A model's tokenizer."""

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Token ids of each text; `special` adds those that the tokenizer puts around a text."""
        ...

    def decode(self, ids: Sequence[np.ndarray]) -> list[str]:
        """The text of each list of token ids, without special tokens."""
        ...

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        ...

    def make_splitter(self, room: int, *, overlap: int) -> Splitter:
        """What cuts texts into chunks of so many tokens."""
        ...

    def show(self, ids: np.ndarray) -> str:
        """Tokens as the model reads them, special ones included."""
        ...

    @property
    def size(self) -> int:
        """How many tokens there are."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token writes, which may be a part of a character."""
        ...


def load_codec(files: ModelFiles, source_lang: str | None = None) -> Codec:
    """The tokenizer of a model that writes; transformers, and torch with it, is imported for translators alone."""
    if files.config.get("model_type") in _BY_TRANSFORMERS:
        return TransformersCodec(files, source_lang)
    return FastCodec(files)


class FastCodec:
    """tokenizer.json, without transformers."""

    def __init__(self, files: ModelFiles) -> None:
        self._backend = load_backend(files)
        self._backend.no_padding()
        self._backend.no_truncation()

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def decode(self, ids: Sequence[np.ndarray]) -> list[str]:
        return self._backend.decode_batch([i.tolist() for i in ids], skip_special_tokens=True)

    def show(self, ids: np.ndarray) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)

    @property
    def size(self) -> int:
        return self._backend.get_vocab_size()

    def token_bytes(self, token: int) -> bytes:
        name = self._backend.id_to_token(token) or ""
        if token in self._added:
            return name.encode()
        return bytes(map(_BYTES.__getitem__, name)) if self._is_of_bytes else _read_piece(name)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._backend.get_added_tokens_decoder())

    @cached_property
    def _is_of_bytes(self) -> bool:
        decoder = self._backend.decoder
        return decoder is not None and b"ByteLevel" in decoder.__getstate__()

    def token_ends(self, text: str) -> list[int]:
        return [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]

    def make_splitter(self, room: int, *, overlap: int) -> Splitter:
        return Splitter(self._backend, room=room, overlap=overlap)


def _name_bytes() -> dict[str, int]:
    """Characters by which tokenizers of bytes write each of them: itself where it can be seen, others from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _read_piece(name: str) -> bytes:
    """What a piece of sentencepiece's kind writes."""
    byte = _ONE_BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


_BYTES = _name_bytes()
_ONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TransformersCodec:
    """A translator's tokenizer, as transformers has it."""

    def __init__(self, files: ModelFiles, source_lang: str | None = None) -> None:
        from udfs.model.tokenizer import load_tokenizer

        self._tokenizer: Any = load_tokenizer(files)
        if source_lang is not None:
            self._tokenizer.src_lang = source_lang

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    def token_bytes(self, token: int) -> bytes:
        return _read_piece(self._tokenizer.convert_ids_to_tokens(token))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, those of languages among them."""
        return {**self._tokenizer.get_vocab(), **getattr(self._tokenizer, "lang_token_to_id", {})}

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=special, truncation=False)["input_ids"] if texts else []

    def decode(self, ids: Sequence[np.ndarray]) -> list[str]:
        return [self._tokenizer.decode(i.tolist(), skip_special_tokens=True) for i in ids]

    def show(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def token_ends(self, text: str) -> list[int]:
        """Of a tokenizer that does not tell, as if all tokens were of one length."""
        if self._tokenizer.is_fast:
            told = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            return [end for _, end in told]
        count = self._count(text)
        return [len(text) * (i + 1) // count for i in range(count)]

    def make_splitter(self, room: int, *, overlap: int) -> Splitter:
        return Splitter(self._count, room=room, overlap=overlap)

    def _count(self, text: str) -> int:
        return len(self.encode([text], special=False)[0])
