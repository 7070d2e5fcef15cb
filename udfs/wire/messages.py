"""Items and their outputs as Arrow, the way they cross between worker and engine. Nothing else crosses, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.wire.items import Items
from udfs.wire.written import Logprobs, Written

REQUEST = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32())),
        pa.field("type_ids", pa.list_(pa.int32())),
        pa.field("options", pa.string()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What came back for a parcel.

    Args:
        number: The parcel's.
        values: (N, D) float32, or a row a token of a model that answers by token; NaN where an item has a fault.
        padded: (N,) int32, width of the micro-batch that an item went through.
        faults: (N,) int8, `scheduler.FINE` or what is wrong.
        offsets: (N + 1,) where each item's rows of `values` begin; None where each item has one row.
        written: N answers of a model that writes, whose `values` are (N, 0); None where an item has a fault.
    """

    number: int
    values: np.ndarray
    padded: np.ndarray
    faults: np.ndarray
    offsets: np.ndarray | None = None
    written: list[Written | None] | None = None


def items_to_arrow(items: Items) -> pa.RecordBatch:
    """Items as a batch of REQUEST, without a copy of the tokens."""
    offsets = _as_arrow(items.offsets.astype(np.int32))
    ids = pa.ListArray.from_arrays(offsets, _as_arrow(items.ids))
    types, options = pa.nulls(len(items), REQUEST.field("type_ids").type), pa.nulls(len(items), pa.string())
    if items.type_ids is not None:
        types = pa.ListArray.from_arrays(offsets, _as_arrow(items.type_ids))
    if items.options is not None:
        options = pa.array(items.options.tolist(), pa.string())
    return pa.record_batch([ids, types, options], schema=REQUEST)


def items_from_arrow(batch: pa.RecordBatch) -> Items:
    """The items of a batch of REQUEST."""
    ids, types, told = batch.column("ids"), batch.column("type_ids"), batch.column("options")
    offsets = _as_numpy(ids.offsets).astype(np.int64)
    flat_types = None if types.null_count == len(types) else _as_numpy(types.flatten())
    options = None if told.null_count == len(told) else np.array([*told.to_pylist(), None], dtype=object)[:-1]
    return Items(_as_numpy(ids.flatten()), offsets - offsets[0], flat_types, options)


def answer_to_arrow(answer: Answer) -> pa.RecordBatch:
    """An answer's arrays; its number travels beside them."""
    if answer.written is not None:
        return _written_to_arrow(answer, answer.written)
    width = answer.values.shape[1]
    values = pa.FixedSizeListArray.from_arrays(_as_arrow(answer.values.reshape(-1)), width)
    if answer.offsets is not None:
        values = pa.ListArray.from_arrays(_as_arrow(answer.offsets.astype(np.int32)), values)
    return pa.record_batch([values, _as_arrow(answer.padded), _as_arrow(answer.faults)], names=_ANSWER)


def answer_from_arrow(number: int, batch: pa.RecordBatch) -> Answer:
    """The arrays of an answer; they lie in the batch's own memory."""
    if batch.schema.names[: len(_WRITTEN)] == list(_WRITTEN):
        return _written_from_arrow(number, batch)
    values, padded, faults = (batch.column(name) for name in _ANSWER)
    offsets = None
    if pa.types.is_list(values.type):
        offsets, values = _as_numpy(values.offsets).astype(np.int64), values.flatten()
    flat = _as_numpy(values.flatten()).reshape(len(values), -1)
    return Answer(number, flat, _as_numpy(padded), _as_numpy(faults), offsets)


def _written_to_arrow(answer: Answer, written: list[Written | None]) -> pa.RecordBatch:
    ids = pa.array([None if w is None else w.ids for w in written], pa.list_(pa.int32()))
    finish = pa.array([None if w is None else w.finish for w in written], pa.int8())
    cached = pa.array([None if w is None else w.cached_tokens for w in written], pa.int32())
    columns = [ids, finish, cached, _as_arrow(answer.padded), _as_arrow(answer.faults)]
    if not any(w is not None and w.logprobs is not None for w in written):
        return pa.record_batch(columns, names=_WRITTEN)
    told = [None if w is None else w.logprobs for w in written]
    return pa.record_batch(
        [
            *columns,
            pa.array([None if t is None else t.values for t in told], pa.list_(pa.float32())),
            pa.array([None if t is None else t.top_ids.reshape(-1) for t in told], pa.list_(pa.int32())),
            pa.array([None if t is None else t.top_values.reshape(-1) for t in told], pa.list_(pa.float32())),
        ],
        names=[*_WRITTEN, *_LOGPROBS],
    )


def _written_from_arrow(number: int, batch: pa.RecordBatch) -> Answer:
    ids, finish, cached, padded, faults = (batch.column(name) for name in _WRITTEN)
    logprobs = [None] * len(ids) if len(batch.schema) == len(_WRITTEN) else _read_logprobs(batch)
    written = [
        None if how is None else Written(_as_numpy(tokens.values), how, shared, told)
        for tokens, how, shared, told in zip(ids, finish.to_pylist(), cached.to_pylist(), logprobs, strict=True)
    ]
    none = np.zeros((len(written), 0), dtype=np.float32)
    return Answer(number, none, _as_numpy(padded), _as_numpy(faults), written=written)


def _read_logprobs(batch: pa.RecordBatch) -> list[Logprobs | None]:
    told: list[Logprobs | None] = []
    for values, top_ids, top_values in zip(*(batch.column(name) for name in _LOGPROBS), strict=True):
        if not values.is_valid:
            told.append(None)
            continue
        flat = _as_numpy(values.values)
        width = len(top_ids.values) // max(1, len(flat))
        tops = (_as_numpy(part.values).reshape(len(flat), width) for part in (top_ids, top_values))
        told.append(Logprobs(flat, *tops))
    return told


# pyarrow's own ways, `pa.array` and `to_numpy`, import pandas, which takes an engine a second of its start.
def _as_arrow(values: np.ndarray) -> pa.Array:
    """(N,) numbers, where they lie."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _as_numpy(values: pa.Array) -> np.ndarray:
    """(N,) numbers without a null, where they lie; read-only."""
    made: np.ndarray = np.from_dlpack(values)
    return made


def pack_note(**note: int | str) -> bytes:
    """The few values that travel beside a batch, or alone."""
    return json.dumps(note).encode()


def unpack_note(metadata: object) -> dict[str, Any]:
    """What `pack_note` made."""
    return json.loads(bytes(metadata))  # type: ignore[call-overload]  # a buffer


_ANSWER = ("values", "padded", "faults")
_WRITTEN = ("ids", "finish", "cached", "padded", "faults")
_LOGPROBS = ("logprobs", "top_ids", "top_logprobs")
