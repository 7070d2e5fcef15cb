"""What the log of an Iceberg table tells: which snapshots there are, and whether they tell of all rows.

Iceberg's stream begins with the oldest snapshot that is left, and reads what each one has appended. Rows of snapshots
that have been expired are in none of them, and neither is what became of rows that were changed. Such a table is
read as it is now, and from then on from snapshot to snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.changes import SKIP_SNAPSHOTS, changed_rows, skips_changes
from jobs.errors import SPARK_ERRORS, InputError, unreadable_input
from jobs.settings import InputSettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_HARMLESS = ("append", "replace")  # the latter moves rows into other files


@dataclass(frozen=True)
class Snapshot:
    """One state of a table.

    Args:
        id: Its own.
        parent: The one before; None for the very first.
        operation: `append`, `replace`, `overwrite` or `delete`.
        added_bytes: Size of the files that it has added.
    """

    id: int
    parent: int | None
    operation: str
    added_bytes: int


def read_lineage(spark: SparkSession, source: InputSettings) -> list[Snapshot]:
    """The snapshots that led to what the table is now, as far back as they are left, the oldest first.

    Raises:
        InputError: The catalog does not show them.
    """
    try:
        rows = _read_metadata(spark, source, "snapshots").collect()
        now = _read_metadata(spark, source, "refs").where("name = 'main'").collect()
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error
    there = {
        row["snapshot_id"]: Snapshot(
            row["snapshot_id"], row["parent_id"], row["operation"], int(row["summary"].get("added-files-size", 0))
        )
        for row in rows
    }
    lineage, place = list[Snapshot](), now[0]["snapshot_id"] if now else None
    while place in there:
        lineage.append(there[place])
        place = there[place].parent
    return lineage[::-1]


def tells_all(lineage: list[Snapshot]) -> bool:
    """Whether what the snapshots have appended is what the table holds."""
    return not lineage or (lineage[0].parent is None and all(s.operation in _HARMLESS for s in lineage))


def cut_spans(
    lineage: list[Snapshot], since: int | None, source: InputSettings, *, size: int
) -> Iterator[tuple[int | None, int]]:
    """Cut what is new into increments.

    Args:
        lineage: Of the table, not empty where something was scored.
        since: The snapshot up to which all is scored; None for nothing yet.
        source: The input; its options say what is to be skipped.
        size: A span ends with the snapshot by which it has so many bytes.

    Yields:
        The snapshot after which a span begins, None for all that the table holds; and the one with which it ends.

    Raises:
        InputError: The log does not go back so far, or rows were changed.
    """
    if since is None:
        if lineage:
            yield None, lineage[-1].id
        return
    places = [place for place, snapshot in enumerate(lineage) if snapshot.id == since]
    if not places:
        raise InputError(
            f"the table's snapshot {since}, up to which it is scored, was expired or rolled back, and nothing tells "
            "what came after it; score all of it again with --overwrite"
        )
    held = 0
    for snapshot in lineage[places[0] + 1 :]:
        if snapshot.operation not in _HARMLESS:
            option = SKIP_SNAPSHOTS[snapshot.operation]
            if not skips_changes(source.options, option):
                raise changed_rows(f"{snapshot.operation} snapshot: {snapshot.id}", option)
        held += snapshot.added_bytes
        if held >= size or snapshot is lineage[-1]:
            yield since, snapshot.id
            since, held = snapshot.id, 0


def read_span(spark: SparkSession, source: InputSettings, start: int | None, end: int) -> DataFrame:
    """What was appended after one snapshot and up to another; without a start, all that the table then held."""
    bounds: dict[str, Any] = {"snapshot-id": end}
    if start is not None:
        bounds = {"start-snapshot-id": start, "end-snapshot-id": end}
    reader = spark.read.options(**source.options, **bounds)
    return reader.table(source.table) if source.table else reader.format(source.format).load(source.path)


def _read_metadata(spark: SparkSession, source: InputSettings, name: str) -> DataFrame:
    if source.table:
        return spark.table(f"{source.table}.{name}")
    return spark.read.format(source.format).load(f"{source.path}#{name}")
