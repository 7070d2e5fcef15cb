"""Vectors as the columns that hold them: floats, half floats, whole numbers of a byte, or bits."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from udfs.errors import SpecError

Quantization = Literal["float32", "float16", "int8", "binary", "ubinary"]
Ranges = tuple[tuple[float, ...], ...]
TYPES: dict[str, pa.DataType] = {
    "float32": pa.list_(pa.float32()),
    "float16": pa.binary(),
    "int8": pa.list_(pa.int8()),
    "binary": pa.binary(),
    "ubinary": pa.binary(),
}
_STEPS = 255  # between the 256 values of a byte


def quantize(vectors: np.ndarray, how: Quantization, ranges: Ranges | None = None) -> pa.Array:
    """A column of vectors.

    Args:
        vectors: (N, D) float32, finite.
        how: `float16` makes two bytes of each number, little-endian; one beyond 65,504 becomes that. `int8` spreads
            each number's range over -128 to 127; what is beyond it takes its end. `binary` makes a bit of each number,
            1 above 0, eight in a byte, the last filled with zeros; these are signed bytes, 128 less than the unsigned
            ones of `ubinary`.
        ranges: The least and the largest value of each number, for `int8`.

    Returns:
        N values of the type `TYPES[how]`.

    Raises:
        SpecError: `int8` has no ranges, or not one for each number.

    Source: sentence-transformers, `quantize_embeddings`.
    """
    match how:
        case "float32":
            return _as_lists(vectors.astype(np.float32, copy=False))
        case "float16":
            largest = np.finfo(np.float16).max
            return _as_bytes(np.clip(vectors, -largest, largest).astype("<f2"))
        case "int8":
            return _as_lists(_to_int8(vectors, ranges))
    bits = np.packbits(vectors > 0, axis=-1)
    return _as_bytes(bits if how == "ubinary" else bits ^ np.uint8(128))


def measure_ranges(vectors: np.ndarray) -> Ranges:
    """The least and the largest value of each number of some (N, D) vectors."""
    return tuple(map(float, vectors.min(axis=0))), tuple(map(float, vectors.max(axis=0)))


def check_ranges(given: Any) -> Any:
    """Ranges as a user gave them.

    Raises:
        ValueError: They are not two lists of as many numbers, the least and the largest.
    """
    if given is None:
        return None
    try:
        held = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(_NO_RANGES) from error
    if (
        held.ndim != 2
        or len(held) != 2
        or not held.shape[1]
        or not np.isfinite(held).all()
        or (held[0] > held[1]).any()
    ):
        raise ValueError(_NO_RANGES)
    return tuple(tuple(map(float, row)) for row in held)


_NO_RANGES = "ranges needs two lists of as many numbers as a vector has: the least value of each, and the largest"


def _to_int8(vectors: np.ndarray, ranges: Ranges | None) -> np.ndarray:
    if ranges is None:
        raise SpecError("quantization 'int8' has no ranges: a job measures them before it scores; give `ranges`")
    least, largest = np.asarray(ranges, dtype=np.float32)
    if len(least) != vectors.shape[1]:
        raise SpecError(f"ranges has {len(least)} numbers, and vectors have {vectors.shape[1]}")
    steps = (largest - least) / _STEPS
    steps[steps == 0] = 1
    return (np.clip(np.floor((vectors - least) / steps), 0, _STEPS) - 128).astype(np.int8)


def _as_lists(values: np.ndarray) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))


def _as_bytes(values: np.ndarray) -> pa.Array:
    width = values.dtype.itemsize * values.shape[1]
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )
    return fixed.cast(pa.binary())
