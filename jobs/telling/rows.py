"""What is read of an output's rows: how long they are, and keys of rows that failed. Never a text.

Only the columns that tell are read, of files that the marks name, and of a large output only some.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.folder import Folder
from jobs.output.marks import Mark, data_files

_MOST_ROWS, _MOST_FILES = 1_000_000, 256
_EXAMPLES = 5
_KEY_CHARACTERS = 60
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Names:
    """What answers are called.

    Args:
        struct: The result column, where it is a struct; None where its fields are columns of their own.
        prefix: What the names of these begin with.
    """

    struct: str | None
    prefix: str = ""

    def place(self, inside: str, flat: str) -> str:
        """Where a field lies."""
        return f"{self.prefix}{flat}" if self.struct is None else f"{self.struct}.{inside}"


@dataclass(frozen=True)
class Lengths:
    """Of rows that went through the model.

    Args:
        tokens: (N,) input tokens of each.
        padded: (N,) tokens that it took in its micro-batch.
        truncated: How many were longer than allowed.
    """

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    padded: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    truncated: int = 0


def read_lengths(folder: Folder, marks: Sequence[Mark], names: Names) -> Lengths:
    """How long rows are, in the order of their files; of a large output those of files from all over it.

    Args:
        folder: The output.
        marks: Its increments.
        names: What answers are called.
    """
    tokens, padded, truncated, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0, 0
    for path in _spread(_files(folder, marks, outcome="succeeded")):
        for told in _read(folder, path, _tell_usage(names)):
            went = told.filter(pc.greater(told["input_tokens"], 0))
            tokens.append(went["input_tokens"].to_numpy().astype(np.int64))
            padded.append(went["padded_tokens"].to_numpy().astype(np.int64))
            truncated += pc.sum(went["truncated"]).as_py() or 0
            rows += told.num_rows
        if rows >= _MOST_ROWS:
            break
    return Lengths(np.concatenate(tokens), np.concatenate(padded), truncated)


def find_failed(
    folder: Folder, marks: Sequence[Mark], names: Names, key: Sequence[str], codes: Iterable[str]
) -> dict[str, list[str]]:
    """Keys of some failed rows that no retry has mended, by error code.

    Args:
        folder: The output.
        marks: Its increments.
        names: What answers are called.
        key: The columns that identify a row; none of them holds what was read.
        codes: Those that there are.
    """
    found: dict[str, list[str]] = {code: [] for code in codes}
    if not key or not found:
        return {}
    retries = [mark for mark in marks if mark.made.is_retry]
    good = _files(folder, retries, outcome="succeeded")
    mended = {told for told, _ in islice(_keys(folder, good, names, key), _MOST_ROWS)}
    failed = _spread(_files(folder, [mark for mark in marks if not mark.made.is_retry], outcome="failed"))
    for told, code in islice(_keys(folder, failed, names, key), _MOST_ROWS):
        if code in found and len(found[code]) < _EXAMPLES and told not in mended:
            found[code].append(told)
            if all(len(examples) == _EXAMPLES for examples in found.values()):
                break
    return found


def _files(folder: Folder, marks: Sequence[Mark], *, outcome: str) -> list[str]:
    paths = []
    for mark in marks:
        names = mark.files or data_files(folder, mark.place)  # an earlier gristmill's mark names none
        paths += [f"{mark.place}/{name}" for name in names if f"outcome={outcome}/" in name]
    return paths


def _spread(paths: list[str]) -> list[str]:
    """Some of many files, from all over them, in an order in which any first few are so too."""
    steps = np.random.default_rng(0).permutation(len(paths))[:_MOST_FILES]
    return [paths[step] for step in steps]


def _keys(folder: Folder, paths: Sequence[str], names: Names, key: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The key of each row of some files, and its error code."""
    wanted = {"code": names.place("error.code", "error_code"), **{f"key {k}": k for k in key}}
    for path in paths:
        parts = dict(part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
        for rows in _read(folder, path, wanted):
            held = {k: rows[f"key {k}"].to_pylist() for k in key if f"key {k}" in rows.column_names}
            held |= {k: [unquote(parts[k])] * rows.num_rows for k in key if k in parts}
            told = [[f"{k}={_show(value)}" for value in held[k]] for k in key if k in held]
            codes = rows["code"].to_pylist() if "code" in rows.column_names else [None] * rows.num_rows
            yield from zip((", ".join(row) for row in zip(*told, strict=True)), codes, strict=bool(told))


def _show(value: Any) -> str:
    told = value.hex() if isinstance(value, bytes) else str(value)
    return told if len(told) <= _KEY_CHARACTERS else f"{told[: _KEY_CHARACTERS - 1]}…"


def _tell_usage(names: Names) -> dict[str, str]:
    """What is told of a row's tokens."""
    usage = {column: names.place(f"usage.{column}", column) for column in ("input_tokens", "padded_tokens")}
    return {**usage, "truncated": names.place("truncated", "truncated")}


def _read(folder: Folder, path: str, wanted: Mapping[str, str]) -> Iterator[pa.Table]:
    """Columns of a file, by the names that are wanted; those that it lacks are not there. Nothing where it is gone."""
    with contextlib.suppress(FileNotFoundError), folder.open(path) as source:
        file = pq.ParquetFile(source)
        leaves = (file.schema.column(place).path for place in range(len(file.schema)))
        held = {*leaves, *file.schema_arrow.names}
        spelt = {name.lower(): name for name in held} | {name: name for name in held}  # settings may spell otherwise
        found = {own: spelt.get(place) or spelt.get(place.lower()) for own, place in wanted.items()}
        columns = sorted({place for place in found.values() if place is not None})
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            table = pa.Table.from_batches([batch])
            yield pa.table({own: _take(table, place) for own, place in found.items() if place is not None})


def _take(table: pa.Table, place: str) -> pa.ChunkedArray:
    """A column, or a field of a struct."""
    if place in table.column_names:
        return table.column(place)
    name = next(n for n in table.column_names if place.startswith(f"{n}."))
    inside = place[len(name) + 1 :].split(".")
    return pa.chunked_array([pc.struct_field(chunk, inside) for chunk in table.column(name).chunks])
