"""Items in ragged form: joined, taken, padded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Items:
    """Sequences of token ids in ragged form.

    Args:
        ids: (T,) int32, all items' tokens one after the other.
        offsets: (N + 1,) int64; item i is ids[offsets[i]:offsets[i + 1]], never empty.
        type_ids: (T,) int32, segment of each token, for pairs of texts; None where all are 0.
        options: (N,) objects, how each is to be answered where that is not the job's way, as `udfs.tasks.row_options`
            writes it, or None; None where all are answered the job's way.
    """

    ids: np.ndarray
    offsets: np.ndarray
    type_ids: np.ndarray | None = None
    options: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens an item."""
        return np.diff(self.offsets)

    def digest(self, index: int) -> str:
        """What tells one item from all others: its number of tokens and a hash."""
        where = slice(*self.offsets[index : index + 2].tolist())
        types = b"" if self.type_ids is None else self.type_ids[where].astype(np.int32).tobytes()
        tokens = self.ids[where].astype(np.int32)
        told = "" if self.options is None else self.options[index] or ""
        whole = tokens.tobytes() + b"/" + types + told.encode()
        return f"{len(tokens)}-{hashlib.blake2b(whole, digest_size=16).hexdigest()}"

    def take(self, indices: np.ndarray) -> Items:
        """The items with these indices, in their order."""
        where, offsets = token_places(self.offsets, indices)
        types = None if self.type_ids is None else self.type_ids[where]
        return Items(self.ids[where], offsets, types, None if self.options is None else self.options[indices])


def join_items(parts: Sequence[Items]) -> Items:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = np.concatenate([[0], *(part.offsets[1:] + end for part, end in zip(parts, ends[:-1], strict=True))])
    types = None
    if any(part.type_ids is not None for part in parts):
        types = np.concatenate([np.zeros_like(p.ids) if p.type_ids is None else p.type_ids for p in parts])
    options = None
    if any(part.options is not None for part in parts):
        options = np.concatenate([np.full(len(p), None) if p.options is None else p.options for p in parts])
    return Items(np.concatenate([part.ids for part in parts]), offsets, types, options)


def padded_length(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple; as it is for multiple 0."""
    return -(-length // multiple) * multiple if multiple else length


def pad(
    flat: np.ndarray, offsets: np.ndarray, batch: np.ndarray, *, pad_multiple: int, fill: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gather the items of a micro-batch from ragged form into a rectangle.

    Args:
        flat: (T,) values of all items.
        offsets: (N + 1,) where each item begins.
        batch: (B,) which items.
        pad_multiple: The width is rounded up to a multiple of it.
        fill: Value of the padding, on the right.

    Returns:
        (B, S) int64 values, and (B, S) bool, true where a value is real.
    """
    where, taken = token_places(offsets, batch)
    lengths = np.diff(taken)
    real = np.arange(padded_length(int(lengths.max()), pad_multiple)) < lengths[:, None]
    values = np.full(real.shape, fill, dtype=np.int64)
    values[real] = flat[where]
    return values, real


def token_places(offsets: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of some items lie in the flat array, and the items' offsets once they are gathered."""
    lengths = offsets[indices + 1] - offsets[indices]
    taken = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(offsets[indices] - taken[:-1], lengths) + np.arange(int(taken[-1])), taken
