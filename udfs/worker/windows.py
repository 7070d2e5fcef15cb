"""A stream of rows cut into windows, their identical texts found once, their items cut into parcels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa


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
