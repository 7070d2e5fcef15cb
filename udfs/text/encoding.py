"""Texts to ragged token ids without special tokens: by `tokenizers`, and by a faster library where that is equal.

`tokenizers` on the model's own tokenizer.json is the reference. `tokie` takes a tenth of its time and less, and is not
equal to it for every tokenizer and every text: it is used for texts of those characters alone for which it was held to
the reference on this node (`udfs.text.holding`), and which no added token is a part of.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udfs.text.holding import Verdict, find_added, hold_to_reference, load_fast
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
        self._backend, self._file = backend, file
        self._done = 0
        self._trial: threading.Thread | None = None
        self._verdict: Verdict | None = None
        self._fast: Any = None
        self._added = find_added(backend) if file else None

    def __call__(self, texts: Sequence[str]) -> Items:
        """Items of texts, one each, which may be empty here; without the tokens that a tokenizer puts around a text."""
        parts = [self._encode(texts[start : start + _SLICE]) for start in range(0, len(texts), _SLICE)]
        return join_items(parts) if parts else Items(np.zeros(0, np.int32), np.zeros(1, np.int64))

    @property
    def name(self) -> str:
        """Which library encodes by now."""
        return "tokenizers" if self._fast is None else "tokie"

    def _encode(self, texts: Sequence[str]) -> Items:
        if self._done >= _WORTHWHILE and self._added is not None and self._trial is None:
            self._trial = threading.Thread(target=self._compare, name="gristmill-tokenizers", daemon=True)
            self._trial.start()
        fast = self._fast
        plain = self._find_plain(texts) if fast is not None else np.zeros(len(texts), dtype=bool)
        if not plain.any():
            made = self._by_reference(texts)
        elif plain.all():
            made = by_fast(fast, texts)
        else:
            order = np.argsort(~plain, kind="stable")
            count = int(plain.sum())
            asked = [texts[number] for number in order.tolist()]
            joined = join_items([by_fast(fast, asked[:count]), self._by_reference(asked[count:])])
            made = joined.take(np.argsort(order))
        self._done += len(made.ids)
        return made

    def _by_reference(self, texts: Sequence[str]) -> Items:
        return by_reference(self._backend, texts)

    def _find_plain(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) bool, texts for which the faster library was held to the reference."""
        if self._verdict is None or self._added is None:
            return np.zeros(len(texts), dtype=bool)
        found = self._verdict.covers(texts)
        search = self._added.search
        for number in np.flatnonzero(found).tolist():
            found[number] = search(texts[number]) is None
        return found

    def _compare(self) -> None:
        """Take the faster library if it is equal; on a thread of its own, while the reference goes on."""
        try:
            if self._file is not None and (verdict := hold_to_reference(self._file)) and verdict.equal:
                self._fast, self._verdict = load_fast(self._file), verdict
        except Exception as error:  # noqa: BLE001 - a young library; without it all is as it was
            print(f"gristmill: tokie is not used: {type(error).__name__}: {error}", file=sys.stderr)


def by_reference(backend: Any, texts: Sequence[str]) -> Items:
    """Items of texts by `tokenizers`."""
    ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)])
    return Items(flatten(ids, offsets), offsets)


def by_fast(fast: Any, texts: Sequence[str]) -> Items:
    """Items of texts by `tokie`, whose arrays are taken as they are."""
    ids, lengths = fast.encode_batch_flat(list(texts), False)
    return Items(ids.view(np.int32), np.concatenate([[0], np.cumsum(lengths.astype(np.int64))]))


def flatten(lists: Sequence[Sequence[int]], offsets: np.ndarray) -> np.ndarray:
    """Lists of numbers as (T,) int32, one after the other."""
    flat = np.empty(int(offsets[-1]), dtype=np.int32)
    for values, start, stop in zip(lists, offsets[:-1], offsets[1:], strict=True):
        flat[start:stop] = values
    return flat
