"""Scored rows written to Parquet by the workers themselves: no answer goes through Spark.

Each task writes files of its own and tells of them in a few rows. Which of them count is for the driver to say: a task
that is tried twice, or that was given up and goes on all the same, has written files that nobody is told of.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from udfs.results import USAGE
from udfs.text.pairs import join_columns

TEXT = "__gristmill_text"  # the column that the text is made of, beside those that are kept
OUTCOMES = ("succeeded", "failed")
DRAFT = ".draft"  # files that do not count yet are no `*.parquet`, which somebody might read
# A row of what a task tells: of one file, the rows with one error code and one engine.
PARTS = pa.schema(
    [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("outcome", pa.string()),
        ("code", pa.string()),
        ("engine", pa.string()),
        ("tokenizer", pa.string()),
        ("rows", pa.int64()),
        ("scored_rows", pa.int64()),
        *((name, pa.int64()) for name in USAGE),
    ]
)
_SUMS = ("rows", "scored_rows", *USAGE)
_GROUP_BYTES = 64 << 20  # rows that are held until they are written as a row group


@dataclass(frozen=True)
class Target:
    """Where rows are written, and how.

    Args:
        folder: A directory that driver and executors share; it is there.
        columns: Names of the columns that are kept; on the way to the worker they have others.
        result: Name of the result column.
        compression: Of Parquet's columns, as pyarrow calls it.
        notes: Kept in each file: Spark's own note of its columns' types.
        int96: Timestamps are written as Spark writes them by default.
        flat: Columns that are written in the place of the result, and where each is in it; None writes the result.
    """

    folder: str
    columns: tuple[str, ...]
    result: str
    compression: str
    notes: Mapping[str, str] = field(default_factory=dict)
    int96: bool = True
    flat: tuple[tuple[str, tuple[str, ...]], ...] | None = None


def write_parts(
    batches: Iterable[pa.RecordBatch],
    score: Callable[[Iterator[pa.Array]], Iterator[pa.StructArray]],
    target: Target,
    names: tuple[str, ...] = (),
    *,
    library: Callable[[], str | None] = lambda: None,
) -> Iterator[pa.RecordBatch]:
    """Score rows and write them.

    Args:
        batches: The columns that are kept, in order, and TEXT (of pairs, a struct).
        score: Gives each row its result, in order, in arrays of whatever sizes.
        target: Where to.
        names: Of the texts of pairs.
        library: Which one has made the tokens.

    Yields:
        What was written, by PARTS, once all of it is.

    Raises:
        OSError: It cannot be written; nothing of this task is left.
    """
    parts = {outcome: _Part(target) for outcome in OUTCOMES}
    try:
        for rows in _with_results(batches, score, target, names):
            failed = pc.struct_field(rows.column(target.result), "error").is_valid()
            for outcome, chosen in zip(OUTCOMES, (pc.invert(failed), failed), strict=True):
                parts[outcome].add(rows.filter(chosen))
        tokenizer = library()
        told = [row | {"tokenizer": tokenizer} for outcome, part in parts.items() for row in part.close(outcome)]
    except BaseException:
        for part in parts.values():
            part.discard()
        raise
    yield pa.RecordBatch.from_pylist(told, schema=PARTS)


def _with_results(
    batches: Iterable[pa.RecordBatch],
    score: Callable[[Iterator[pa.Array]], Iterator[pa.StructArray]],
    target: Target,
    names: tuple[str, ...],
) -> Iterator[pa.Table]:
    """Rows with their results; the texts are gone."""
    held: deque[pa.RecordBatch] = deque()

    def texts() -> Iterator[pa.Array]:
        for batch in batches:
            held.append(batch.drop_columns([TEXT]))
            yield join_columns(batch.column(TEXT), names)

    for scored in score(texts()):
        rows = pa.Table.from_batches(_take(held, len(scored))) if len(scored) else None
        if rows is not None:
            yield rows.rename_columns(list(target.columns)).append_column(target.result, scored)


def _take(held: deque[pa.RecordBatch], rows: int) -> list[pa.RecordBatch]:
    """The first rows of what is held; they are held no more."""
    taken = []
    while rows:
        batch = held.popleft()
        taken.append(batch.slice(0, rows))
        if len(batch) > rows:
            held.appendleft(batch.slice(rows))
        rows -= len(taken[-1])
    return taken


class _Part:
    """A file of one task's rows of one outcome; it is opened with the first row."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._path = Path(target.folder, f"part-{uuid.uuid4().hex}.{target.compression}.parquet{DRAFT}")
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._sums: dict[tuple[str | None, str | None], Counter[str]] = {}

    def add(self, rows: pa.Table) -> None:
        if not len(rows):
            return
        results = rows.column(self._target.result).combine_chunks()
        self._count(results)
        if self._target.flat is not None:
            rows = _take_apart(rows.drop_columns([self._target.result]), results, self._target.flat)
        self._held.append(rows)
        if sum(table.nbytes for table in self._held) >= _GROUP_BYTES:
            self._write()

    def close(self, outcome: str) -> list[dict[str, Any]]:
        """Finish the file, and tell of it; nothing where there was no row."""
        self._write()
        if self._writer is None:
            return []
        self._writer.close()
        told = {"file": self._path.name, "size": self._path.stat().st_size, "outcome": outcome}
        return [{**told, "code": code, "engine": engine, **sums} for (code, engine), sums in self._sums.items()]

    def discard(self) -> None:
        """Leave nothing."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if not self._held:
            return
        rows, self._held = pa.concat_tables(self._held), []
        if self._writer is None:
            self._writer = self._open(rows.schema)
        self._writer.write_table(rows, row_group_size=len(rows))

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        notes = {key.encode(): value.encode() for key, value in self._target.notes.items()}
        return pq.ParquetWriter(
            self._path,
            schema.with_metadata(notes),
            compression=self._target.compression,
            use_dictionary=_repeating(schema),
            use_deprecated_int96_timestamps=self._target.int96,
            store_schema=False,
        )

    def _count(self, results: pa.StructArray) -> None:
        columns = {
            "code": pc.struct_field(results, ["error", "code"]),
            "engine": pc.struct_field(results, "engine"),
            **{name: pc.struct_field(results, ["usage", name]) for name in USAGE},
        }
        columns["scored_rows"] = pc.greater(columns["input_tokens"], 0).cast(pa.int64())
        wanted = [(name, "sum") for name in _SUMS if name != "rows"]
        groups = pa.table(columns).group_by(["code", "engine"]).aggregate([*wanted, ([], "count_all")])
        for row in groups.to_pylist():
            sums = {name: row[f"{name}_sum"] or 0 for name, _ in wanted} | {"rows": row["count_all"]}
            self._sums.setdefault((row["code"], row["engine"]), Counter()).update(sums)


def _take_apart(rows: pa.Table, results: pa.StructArray, flat: Iterable[tuple[str, tuple[str, ...]]]) -> pa.Table:
    """Rows with fields of their results as columns."""
    for name, path in flat:
        rows = rows.append_column(name, pc.struct_field(results, list(path)))
    return rows


def _repeating(schema: pa.Schema) -> list[str]:
    """Columns whose values may repeat, by their paths in the file: for a vector's numbers no dictionary is tried."""
    return [path for kept in schema for path in _leaves(kept.name, kept.type) if path]


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    if pa.types.is_struct(kind):
        return [leaf for inner in kind for leaf in _leaves(f"{path}.{inner.name}", inner.type)]
    if pa.types.is_map(kind):
        inner = {"key": kind.key_type, "value": kind.item_type}
        return [leaf for name, of in inner.items() for leaf in _leaves(f"{path}.key_value.{name}", of)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [] if pa.types.is_floating(kind) else [path]
