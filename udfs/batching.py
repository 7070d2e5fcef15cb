"""The arithmetic of batches: ragged items, micro-batches cut by tokens, identical texts found once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

_LEAST_REAL_SHARE = 0.93
_MOST_PACKED = 65_535  # items: a GPU's attention kernel has so many rows of blocks at most


@dataclass(frozen=True)
class Items:
    """Sequences of token ids in ragged form.

    Args:
        ids: (T,) int32, all items' tokens one after the other.
        offsets: (N + 1,) int64; item i is ids[offsets[i]:offsets[i + 1]], never empty.
        type_ids: (T,) int32, segment of each token, for pairs of texts; None where all are 0.
    """

    ids: np.ndarray
    offsets: np.ndarray
    type_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens an item."""
        return np.diff(self.offsets)

    def digest(self, index: int) -> str:
        """What tells one item's tokens from all others: their number and a hash."""
        where = slice(*self.offsets[index : index + 2].tolist())
        types = b"" if self.type_ids is None else self.type_ids[where].astype(np.int32).tobytes()
        tokens = self.ids[where].astype(np.int32)
        return f"{len(tokens)}-{hashlib.blake2b(tokens.tobytes() + b'/' + types, digest_size=16).hexdigest()}"

    def take(self, indices: np.ndarray) -> Items:
        """The items with these indices, in their order."""
        where, offsets = token_places(self.offsets, indices)
        return Items(self.ids[where], offsets, None if self.type_ids is None else self.type_ids[where])


def join_items(parts: Sequence[Items]) -> Items:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = np.concatenate([[0], *(part.offsets[1:] + end for part, end in zip(parts, ends[:-1], strict=True))])
    types = None
    if any(part.type_ids is not None for part in parts):
        types = np.concatenate([np.zeros_like(p.ids) if p.type_ids is None else p.type_ids for p in parts])
    return Items(np.concatenate([part.ids for part in parts]), offsets, types)


def cut_parcels(lengths: np.ndarray, *, parcel_tokens: int) -> list[np.ndarray]:
    """Cut items into parcels for the engine, longest first.

    Args:
        lengths: (N,) tokens an item.
        parcel_tokens: A parcel ends with the item that reaches so many tokens.

    Returns:
        Indices into `lengths`, each in one parcel.
    """
    order = np.argsort(-lengths, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    return np.split(order, np.flatnonzero(np.diff(before // parcel_tokens)) + 1) if len(order) else []


def fit_batch(descending: np.ndarray, *, max_batch_tokens: int, min_batch_tokens: int, pad_multiple: int) -> int:
    """How many of the longest items make the next micro-batch.

    The longest come first, so that memory peaks at once and is reused; neighbours differ little in length, so that
    padding is small. A micro-batch that keeps the device busy ends early where more items would make it mostly
    padding. An item that is alone above the budget makes a micro-batch of its own.

    Args:
        descending: (N,) tokens of one or more items, longest first.
        max_batch_tokens: Bound on items times padded length.
        min_batch_tokens: From this size on, a micro-batch ends before padding passes 7 % of it.
        pad_multiple: Lengths are rounded up to a multiple of it; 0 where micro-batches are packed: then the budget
            bounds the tokens themselves.
    """
    if not pad_multiple:
        fits = int(np.searchsorted(np.cumsum(descending), max_batch_tokens, side="right"))
        return min(max(1, fits), _MOST_PACKED)
    width = padded_length(int(descending[0]), pad_multiple)
    taken = descending[: max(1, max_batch_tokens // width)]
    sizes = np.arange(1, len(taken) + 1) * width
    dense = (np.cumsum(taken) >= _LEAST_REAL_SHARE * sizes) | (sizes <= min_batch_tokens)
    return int(np.flatnonzero(dense)[-1]) + 1 if dense.any() else 1


def padded_length(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple; as it is for multiple 0."""
    return -(-length // multiple) * multiple if multiple else length


def batch_tokens(lengths: np.ndarray, multiple: int) -> int:
    """Tokens of a micro-batch of items of these lengths, padding included; multiple 0 packs them."""
    return padded_length(int(lengths.max()), multiple) * len(lengths) if multiple else int(lengths.sum())


def split_equal(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices into `lengths`, cut into groups of one length each, the shortest first."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)


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


def pool_by_unit(
    outputs: np.ndarray, weights: np.ndarray, units: np.ndarray, *, how: Literal["mean", "max"] = "mean"
) -> np.ndarray:
    """One output a unit: the mean of its items' outputs, weighted by their tokens, or the largest of each number.

    Args:
        outputs: (N, D) float32, one row an item.
        weights: (N,) tokens an item.
        units: (U + 1,) where each unit's items begin.
        how: `mean` or `max`.

    Returns:
        (U, D) float32; zeros for a unit without items.
    """
    counts = np.diff(units)
    if len(outputs) == len(counts) and (counts == 1).all():
        return outputs
    pooled = np.zeros((len(counts), outputs.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return pooled
    starts = units[:-1][filled]
    if how == "max":
        pooled[filled] = np.maximum.reduceat(outputs, starts, axis=0)
    else:
        total = np.add.reduceat(outputs * weights[:, None], starts, axis=0)
        pooled[filled] = total / np.add.reduceat(weights, starts)[:, None]
    return pooled


def sum_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(U,) sums of the values of each unit's items; 0 for a unit without items."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[units])


def find_duplicates(texts: pa.Array, *, dedupe: bool) -> tuple[pa.Array, np.ndarray]:
    """Tell texts apart.

    Args:
        texts: Strings, null where the row has failed already.
        dedupe: False gives every non-null row a text of its own.

    Returns:
        The distinct texts in the order of their first row, and (R,) int64 the text of each row, -1 for null.
    """
    if not dedupe:
        present = np.asarray(texts.is_valid())
        return texts.drop_null(), np.where(present, np.cumsum(present) - 1, -1)
    encoded = texts.dictionary_encode()
    return encoded.dictionary, np.asarray(encoded.indices.fill_null(-1), dtype=np.int64)


def cut_windows(batches: Iterable[pa.Array], *, window_rows: int, window_bytes: int = 64 << 20) -> Iterator[pa.Array]:
    """Cut a stream of Arrow arrays into windows, in order, whatever the sizes that it comes in.

    Args:
        batches: Arrays of one type.
        window_rows: Rows of a window; the last one may have fewer.
        window_bytes: A window that has reached so many bytes ends early.

    Yields:
        Arrays of 1 to `window_rows` rows.
    """
    held: list[pa.Array] = []
    for batch in batches:
        rest = batch
        while len(rest):
            room = window_rows - sum(map(len, held))
            held.append(rest.slice(0, room))
            rest = rest.slice(room)
            if sum(map(len, held)) == window_rows or sum(a.nbytes for a in held) >= window_bytes:
                yield pa.concat_arrays(held)
                held = []
    if held:
        yield pa.concat_arrays(held)
