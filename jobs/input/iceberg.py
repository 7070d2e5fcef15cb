"""An Iceberg table from snapshot to snapshot: what its log tells, and which part of it the next increment is made of.

Its stream is not used. With `Trigger.AvailableNow` it takes all that is new at once, and it begins with the oldest
snapshot that is left, without the rows of those that have expired. Where the snapshots tell of all rows, increments
follow them; else the first ones are of the table as it is. What is too much for an increment is cut by the hash of its
rows' keys: a snapshot stays what it is, so that the same rows are in an increment whenever it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.errors import SPARK_ERRORS, InputError, unreadable_input
from jobs.input.changes import SKIP_SNAPSHOTS, changed_rows, skips_changes
from jobs.input.following import as_changes
from jobs.input.kinds import can_hash, column
from jobs.input.spans import SHARES, Span
from jobs.settings import InputSettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LEAST_SHARE = SHARES // 64  # each share reads the whole snapshot
_OTHER_SNAPSHOTS = {
    *("stream-from-timestamp", "snapshot-id", "start-snapshot-id", "end-snapshot-id"),
    *("as-of-timestamp", "versionasof", "timestampasof", "branch", "tag"),
}
_WIDEST = {"int": "bigint", "float": "double"}  # what a column's type may become
_HARMLESS = ("append", "replace")  # the latter moves rows into other files


@dataclass(frozen=True)
class Snapshot:
    """One state of a table.

    Args:
        id: Its own.
        parent: The one before; None for the very first.
        operation: `append`, `replace`, `overwrite` or `delete`.
        added_bytes: Size of the files that it has appended.
        total_bytes: Size of all files that the table has with it.
    """

    id: int
    parent: int | None
    operation: str
    added_bytes: int
    total_bytes: int


def read_lineage(spark: SparkSession, source: InputSettings) -> list[Snapshot]:
    """The snapshots that led to what the table is now, as far back as they are left, the oldest first.

    Raises:
        InputError: The catalog does not show them, or options ask for others.
    """
    if strange := [name for name in source.options if name.lower() in _OTHER_SNAPSHOTS]:
        raise InputError(
            f"input.options.{strange[0]}: an Iceberg table is scored as its main branch is, from the first snapshot "
            "on; leave it out, or take a `query`"
        )
    try:
        rows = _read_metadata(spark, source, "snapshots").collect()
        now = _read_metadata(spark, source, "refs").where("name = 'main'").collect()
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error
    there = {
        row["snapshot_id"]: Snapshot(
            row["snapshot_id"],
            row["parent_id"],
            row["operation"],
            added_bytes=int(row["summary"].get("added-files-size", 0))
            if row["operation"] == "append" or (source.changes == "follow" and row["operation"] == "overwrite")
            else 0,
            total_bytes=int(row["summary"].get("total-files-size", 0)),
        )
        for row in rows
    }
    lineage, place = list[Snapshot](), now[0]["snapshot_id"] if now else None
    while place in there:
        lineage.append(there[place])
        place = there[place].parent
    return lineage[::-1]


def next_span(
    lineage: list[Snapshot], last: Span | None, source: InputSettings, *, size: int, key: Sequence[str] = ()
) -> tuple[Span, int] | None:
    """What the next increment is made of, and its bytes; None if nothing is new.

    Args:
        lineage: Of the table.
        last: What the last increment was made of; None for the first one.
        source: The input; its options say what is to be skipped.
        size: Bytes of an increment.
        key: Columns by whose hash rows are parted; where some of a span are scored already, its own hold.

    Raises:
        InputError: The log does not go back so far, or rows were changed.
    """
    if last is not None and last.high < SHARES:
        rest: Span | None = replace(last, low=last.high, high=SHARES)
    else:
        start = None if last is None else last.end
        # by its path, a table is read with the columns that it had then; by its name, with those of today
        followed = start is not None or (_tells_all(lineage) and (source.table or not lineage))
        end = _find_end(_later(lineage, start), source, size=size) if followed else lineage[-1].id
        rest = None if end is None else Span(start, end, key=tuple(key))
    return None if rest is None else _cut(rest, _bytes_of(rest, lineage), size)


def read_span(spark: SparkSession, source: InputSettings, span: Span) -> DataFrame:
    """The rows of a span.

    Raises:
        InputError: They cannot be read any more.
    """
    from pyspark.sql import functions as F

    bounds: dict[str, Any] = {"snapshot-id": span.end}
    if span.start is not None:
        bounds = {"start-snapshot-id": span.start, "end-snapshot-id": span.end}
    reader = spark.read.options(**source.options, **bounds)
    changes = source.changes == "follow" and span.start is not None
    try:
        if changes:
            frame = as_changes(
                reader.table(f"{source.table}.changes")
                if source.table
                else reader.format(source.format).load(f"{source.path}#changes")
            )
        else:
            frame = reader.table(source.table) if source.table else reader.format(source.format).load(source.path)
    except SPARK_ERRORS as error:
        raise unreadable_input(error, "; if a snapshot has just expired, start the job again") from error
    if (span.low, span.high) == (0, SHARES):
        return frame
    kinds = {name.lower(): kind for name, kind in frame.dtypes}
    if gone := [name for name in span.key if name.lower() not in kinds]:
        raise InputError(f"{', '.join(gone)}, by which a snapshot was parted, is no column of the table any more")
    hashed = (column(c).cast(_hashed_as(kinds[c.lower()], widened=span.widened)) for c in span.key)
    share = F.pmod(F.xxhash64(*hashed), F.lit(SHARES))
    return frame.where((share >= span.low) & (share < span.high))


def _tells_all(lineage: list[Snapshot]) -> bool:
    """Whether what the snapshots have appended is what the table holds."""
    return not lineage or (lineage[0].parent is None and all(s.operation in _HARMLESS for s in lineage))


def _later(lineage: list[Snapshot], snapshot: int | None) -> list[Snapshot]:
    """The snapshots after one: all of them, if it is None, or the parent of the first that is left.

    Raises:
        InputError: It is not there.
    """
    if snapshot is None or (lineage and lineage[0].parent == snapshot):
        return lineage
    return lineage[_place(lineage, snapshot) + 1 :]


def _place(lineage: list[Snapshot], snapshot: int) -> int:
    for place, there in enumerate(lineage):
        if there.id == snapshot:
            return place
    raise InputError(
        f"the table's snapshot {snapshot}, up to which it is scored, was expired or rolled back, and nothing tells "
        "what came after it; score all of it again with --overwrite"
    )


def _find_end(later: list[Snapshot], source: InputSettings, *, size: int) -> int | None:
    """The snapshot by which there are enough bytes, or the last before rows were changed; None if nothing is new."""
    end, held = None, 0
    for snapshot in later:
        if snapshot.operation not in _HARMLESS and source.changes == "stop":
            option = SKIP_SNAPSHOTS[snapshot.operation]
            if not skips_changes(source.options, option):
                if end is not None:
                    break
                raise changed_rows(f"{snapshot.operation} snapshot: {snapshot.id}", option)
        end, held = snapshot.id, held + snapshot.added_bytes
        if held >= size:
            break
    return end


def _bytes_of(span: Span, lineage: list[Snapshot]) -> int:
    """Bytes of all shares of a span together."""
    until = lineage[: _place(lineage, span.end) + 1]
    if span.start is None:
        return until[-1].total_bytes
    return sum(snapshot.added_bytes for snapshot in _later(until, span.start))


def _cut(rest: Span, held: int, size: int) -> tuple[Span, int]:
    """The first shares of what is left, as many as have so many bytes; a small remainder comes along."""
    shares = max(_LEAST_SHARE, SHARES * size // max(held, 1))
    high = SHARES if rest.low + 1.5 * shares >= SHARES else rest.low + shares
    return replace(rest, high=high), held * (high - rest.low) // SHARES


def _hashed_as(kind: str, *, widened: bool) -> str:
    """The type as which a key's column is hashed."""
    if not can_hash(kind) or (widened and kind.startswith("decimal")):
        return "string"
    return _WIDEST.get(kind, kind) if widened else kind


def _read_metadata(spark: SparkSession, source: InputSettings, name: str) -> DataFrame:
    if source.table:
        return spark.table(f"{source.table}.{name}")
    return spark.read.format(source.format).load(f"{source.path}#{name}")
