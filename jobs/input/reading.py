"""Read an increment through once before it is scored: count it, and find what of it cannot be read or is gone.

Files are read by the names that the checkpoint planned, not as Spark hands them over: there a file that is gone is one
without rows, and a name with brackets in it a pattern that fits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.errors import SPARK_ERRORS, unreadable_file, unreadable_input
from jobs.input.checkpoint import SeenFile, path_of
from jobs.input.files import find_gone
from jobs.input.sources import FILE, FILE_SIZE, read_files
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class Counts:
    """Rows of an increment, and the files and bytes that they come from; null where the source does not tell."""

    rows: int
    files: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Readable:
    """What of an increment can be scored.

    Args:
        frame: Its rows.
        counts: How many, out of which files; those without a row do not count.
        ignored: Files that are there and cannot be read, as `input.ignore_corrupt` asks.
        gone: Files that were there as the increment was planned.
    """

    frame: DataFrame
    counts: Counts
    ignored: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def read_frame(frame: DataFrame) -> Readable:
    """Read an increment that is not made of files.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return Readable(frame, count(frame))
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error


def read_planned(spark: SparkSession, settings: Settings, schema: StructType, planned: Sequence[SeenFile]) -> Readable:
    """Read an increment's files, leaving some out as a whole until the rest can be read.

    A file that is gone fails no job: the checkpoint would ask for it in every run to come.

    Args:
        spark: The session.
        settings: The job.
        schema: Of the input.
        planned: The files.

    Raises:
        InputError: A file is there and cannot be read, and is not to be ignored; or nothing of the input is there.
    """
    left, ignored, gone = {file.path: file for file in planned}, list[SeenFile](), list[SeenFile]()
    while True:
        read = _try_to_read(spark, settings, schema, [file.uri for file in left.values()])
        # Files without rows are not counted, nor is one that went away between Spark's first look at it and its second.
        whole = isinstance(read, Readable) and (read.counts.files or 0) == len(left)
        if out := [] if whole else find_gone(str(settings.input.path), left.values()):
            gone += out
        elif isinstance(read, Readable):
            return replace(read, ignored=tuple(f.uri for f in ignored), gone=tuple(f.uri for f in gone))
        else:
            out = [_to_ignore(read, settings, left)]
            ignored += out
        for file in out:
            del left[file.path]


def count(frame: DataFrame) -> Counts:
    """Count an increment; every column is read."""
    from pyspark.sql import functions as F

    hashed = (F.col(f"`{c}`") if can_hash(kind) else F.col(f"`{c}`").isNull() for c, kind in frame.dtypes)
    read = F.max(F.xxhash64(F.lit(0), *hashed))
    if FILE not in frame.columns:
        row = frame.agg(F.count(F.lit(1)).alias("rows"), read).collect()[0]
        return Counts(row["rows"])
    by_file = frame.groupBy(FILE, FILE_SIZE).agg(F.count(F.lit(1)).alias("rows"), read)
    row = by_file.agg(F.sum("rows").alias("rows"), F.count(F.lit(1)).alias("files"), F.sum(FILE_SIZE).alias("bytes"))
    found = row.collect()[0]
    return Counts(found["rows"] or 0, found["files"], found["bytes"] or 0)


def count_rows(frame: DataFrame) -> int:
    """Count rows as cheaply as their source allows; nothing else of them is read.

    Raises:
        InputError: They cannot be read.
    """
    try:
        return frame.count()
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error


def can_hash(kind: str) -> bool:
    """Whether Spark hashes a type of column."""
    return "map<" not in kind and "variant" not in kind


def _try_to_read(spark: SparkSession, settings: Settings, schema: StructType, uris: list[str]) -> Readable | Exception:
    try:
        frame = read_files(spark, settings, schema, uris)
        return Readable(frame, count(frame))
    except SPARK_ERRORS as error:
        return error


def _to_ignore(error: Exception, settings: Settings, left: dict[str, SeenFile]) -> SeenFile:
    """The file that Spark could not read, if it is to be left out.

    Raises:
        InputError: It is not, or something else went wrong.
    """
    broken = unreadable_file(error)
    file = left.get(path_of(broken)) if broken and settings.input.ignore_corrupt else None
    if file is None:
        advice = "; mend it or take it away, or set input.ignore_corrupt" if broken else ""
        raise unreadable_input(error, advice) from error
    return file
