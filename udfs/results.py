"""The result column: the task's own fields, then what is the same for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from udfs.errors import RowError

_ERROR = pa.struct([pa.field("code", pa.string()), pa.field("message", pa.string())])
USAGE = ("input_tokens", "output_tokens", "padded_tokens", "cached_tokens")
_USAGE = pa.struct([pa.field(n, pa.int32()) for n in USAGE])
COMMON_FIELDS: tuple[pa.Field, ...] = (
    pa.field("error", _ERROR),
    pa.field("usage", _USAGE),
    pa.field("truncated", pa.bool_()),
    pa.field("engine", pa.string()),
)


def result_type(fields: Sequence[pa.Field]) -> pa.StructType:
    """Type of the result column of a task with these fields."""
    return pa.struct([*fields, *COMMON_FIELDS])


def join_result(
    fields: Sequence[pa.Field],
    columns: Sequence[pa.Array],
    *,
    text_of_row: np.ndarray,
    failures: dict[int, RowError],
    truncated: np.ndarray,
    usage: Mapping[str, np.ndarray],
    engines: Sequence[str],
    engine_of: np.ndarray,
) -> pa.StructArray:
    """Spread the answers to distinct texts over the rows that have them.

    Args:
        fields: The task's own.
        columns: One array of N distinct texts for each field.
        text_of_row: (R,) which text a row has, -1 for none.
        failures: Row number -> its error; such a row's task fields are null.
        truncated: (N,) of each distinct text.
        usage: (N,) of each distinct text, for each of `USAGE`.
        engines: Who answered.
        engine_of: (N,) which of them answered each distinct text.

    Returns:
        (R,) structs. A text's tokens count in its first row; its duplicates cost 0.
    """
    rows = len(text_of_row)
    failed = np.zeros(rows, dtype=bool)
    failed[list(failures)] = True
    scored = text_of_row >= 0
    answers = pa.array(text_of_row, mask=failed | ~scored)
    sent = _pick(usage["input_tokens"] > 0, text_of_row, scored)
    first = np.zeros(rows, dtype=bool)
    first[np.unique(text_of_row, return_index=True)[1]] = True
    costs = [_cost(usage[name], text_of_row, first & scored) for name in USAGE]
    arrays = [
        *(column.take(answers).cast(field.type) for field, column in zip(fields, columns, strict=True)),
        _error_array(failures, failed),
        pa.StructArray.from_arrays(costs, fields=list(_USAGE)),
        pa.array(_pick(truncated, text_of_row, scored), pa.bool_()),
        pa.array(engines, pa.string()).take(pa.array(_pick(engine_of, text_of_row, scored), mask=~sent)),
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(result_type(fields)))


def _pick(values: np.ndarray, text_of_row: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    picked = np.zeros(len(text_of_row), dtype=values.dtype)
    picked[wanted] = values[text_of_row[wanted]]
    return picked


def _cost(tokens: np.ndarray, text_of_row: np.ndarray, wanted: np.ndarray) -> pa.Array:
    return pa.array(_pick(tokens, text_of_row, wanted).astype(np.int32))


def _error_array(failures: dict[int, RowError], failed: np.ndarray) -> pa.StructArray:
    codes: list[str | None] = [None] * len(failed)
    messages: list[str | None] = [None] * len(failed)
    for row, error in failures.items():
        codes[row], messages[row] = error.code, error.message
    return pa.StructArray.from_arrays(
        [pa.array(codes, pa.string()), pa.array(messages, pa.string())],
        fields=list(_ERROR),
        mask=pa.array(~failed),
    )
