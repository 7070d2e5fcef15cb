"""Texts to ragged token ids without special tokens: by `tokenizers`, and by a faster library where that is equal.

`tokenizers` on the model's own tokenizer.json is the reference. Others (`udfs.text.fast`) take a tenth of its time and
less, and are not equal to it for every tokenizer and every text: they are used for texts of those characters alone for
which they were held to the reference on this node (`udfs.text.holding`), and which no added token is a part of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from udfs.text.fast import Fast, load_fast
from udfs.text.holding import Trial, Verdict, find_added
from udfs.wire.items import Items, join_items

_SLICE = 2_000  # texts of a call: the faster library is taken as soon as it is known to be equal
_WORTHWHILE = 200_000  # tokens; less is done before the two libraries are compared


class Encoder:
    """Token ids of texts, as the reference has them, whichever library makes them.

    Args:
        backend: A `tokenizers.Tokenizer`; it neither cuts nor pads.
        file: The tokenizer.json that it was made of; None where there is none, so that it is always the reference.
    """

    def __init__(self, backend: Any, file: Path | None) -> None:
        self._backend = backend
        self._added = find_added(backend) if file else None
        self._faster = None if file is None or self._added is None else _find_faster(file)

    def __call__(self, texts: Sequence[str]) -> Items:
        """Items of texts, one each, which may be empty here; without the tokens that a tokenizer puts around a text."""
        parts = [self._encode(texts[start : start + _SLICE]) for start in range(0, len(texts), _SLICE)]
        return join_items(parts) if parts else Items(np.zeros(0, np.int32), np.zeros(1, np.int64))

    @property
    def name(self) -> str:
        """Which library encodes by now."""
        return "tokenizers" if self._faster is None or self._faster.found is None else str(self._faster.library)

    def counter(self) -> tuple[Callable[[str], int], Callable[[Sequence[str]], np.ndarray]] | None:
        """What counts the tokens of texts, or of any parts of them, fast; and (N,) bool, of which texts it may."""
        if self._faster is None or self._faster.found is None:
            return None
        fast, verdict = self._faster.found
        return (fast.count, lambda texts: self._find_plain(texts, verdict)) if verdict.edges and verdict.runs else None

    def _encode(self, texts: Sequence[str]) -> Items:
        if self._faster is None:
            return by_reference(self._backend, texts)
        if (found := self._faster.found) is None:
            made = by_reference(self._backend, texts)
            self._faster.count(len(made.ids))
            return made
        fast, verdict = found
        plain = self._find_plain(texts, verdict)
        self._faster.used |= bool(plain.any())
        if plain.all():
            return self._by_fast(fast, texts)
        order = np.argsort(~plain, kind="stable")
        asked, count = [texts[number] for number in order.tolist()], int(plain.sum())
        parts = [self._by_fast(fast, asked[:count])] if count else []
        return join_items([*parts, by_reference(self._backend, asked[count:])]).take(np.argsort(order))

    def _by_fast(self, fast: Fast, texts: Sequence[str]) -> Items:
        try:
            return fast.encode(texts)
        except Exception:  # noqa: BLE001 - of a young library; it is no row's fault
            return by_reference(self._backend, texts)

    def _find_plain(self, texts: Sequence[str], verdict: Verdict) -> np.ndarray:
        """(N,) bool, texts for which the faster library was held to the reference."""
        found = verdict.covers(texts)
        for number in np.flatnonzero(found).tolist():
            found[number] = self._added is not None and self._added.search(texts[number]) is None
        return found


class _Faster:
    """The faster library for one tokenizer, in this process: a worker does one task after the other.

    Args:
        file: The tokenizer.json.

    Attributes:
        found: The library and what was found of it, once it is known to be equal.
        used: It has made tokens.
        library: Its name.
    """

    def __init__(self, file: Path) -> None:
        self.found: tuple[Fast, Verdict] | None = None
        self.used = False
        self._file, self._tokens = file, 0
        self._trial: Trial | None = Trial(file)
        self.library = self._trial.library
        self._look()

    def count(self, tokens: int) -> None:
        """So many were made by the reference; once they are many, have the two compared."""
        self._tokens += tokens
        if self._trial and self._tokens >= _WORTHWHILE:
            self._trial.start()
            self._look()

    def _look(self) -> None:
        try:
            if self._trial and (verdict := self._trial.recall()):
                self._trial = None
                self.found = (load_fast(str(self.library), self._file), verdict) if verdict.equal else None
        except Exception as error:  # noqa: BLE001 - a young library; without it all is as it was
            self._trial = None
            print(f"gristmill: {self.library} is not used: {type(error).__name__}: {error}", file=sys.stderr)


@lru_cache(maxsize=4)
def _faster_of(file: Path, stamp: tuple[int, int]) -> _Faster:
    del stamp  # another file has another
    return _Faster(file)


def _find_faster(file: Path) -> _Faster:
    told = file.stat()
    return _faster_of(file.resolve(), (told.st_mtime_ns, told.st_size))


def library_of(file: Path | None) -> str:
    """Which library this process has made tokens with by a tokenizer.json; once the faster one, that."""
    faster = None if file is None else _find_faster(file)
    return str(faster.library) if faster and faster.used else "tokenizers"


def by_reference(backend: Any, texts: Sequence[str]) -> Items:
    """Items of texts by `tokenizers`."""
    ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)])
    return Items(flatten(ids, offsets), offsets)


def flatten(lists: Sequence[Sequence[int]], offsets: np.ndarray) -> np.ndarray:
    """Lists of numbers as (T,) int32, one after the other."""
    flat = np.empty(int(offsets[-1]), dtype=np.int32)
    for values, start, stop in zip(lists, offsets[:-1], offsets[1:], strict=True):
        flat[start:stop] = values
    return flat
