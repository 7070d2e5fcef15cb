"""Read an increment through once before it is scored: count it, and find what of it cannot be read or is gone.

Files are read by the names that the checkpoint planned, not as Spark hands them over: there a file that is gone is one
without rows, and a name with brackets in it a pattern that fits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobs.errors import SPARK_ERRORS, unreadable_file, unreadable_input
from jobs.input.checkpoint import SeenFile, path_of
from jobs.input.files import ReadFile, find_gone, find_repeated, tell_swallowing
from jobs.input.json_lines import look_at_lines
from jobs.input.kinds import column, hashable
from jobs.input.records import (
    Headers,
    has_headers,
    is_swallowed,
    raw_column,
    read_headers,
    tell_headers,
)
from jobs.input.sources import FILE, FILE_SIZE, FILE_TIME, read_files
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class Counts:
    """Rows of an increment, and the files that they come from; null where the source does not tell.

    `swallowing` are the files with rows that seem to hold others, and how many.
    """

    rows: int
    read: tuple[ReadFile, ...] | None = None
    swallowing: dict[str, int] = field(default_factory=dict)

    @property
    def malformed(self) -> dict[str, int]:
        """Records that do not fit, by their files' URIs."""
        return {file.uri: file.malformed for file in sorted(self.read or (), key=lambda f: f.uri) if file.malformed}

    @property
    def files(self) -> int | None:
        return None if self.read is None else len(self.read)

    @property
    def bytes(self) -> int | None:
        return None if self.read is None else sum(file.size for file in self.read)


@dataclass(frozen=True)
class Readable:
    """What of an increment can be scored.

    Args:
        frame: Its rows.
        counts: How many, out of which files; those without a row do not count.
        ignored: Files that are there and cannot be read, as `input.ignore_corrupt` asks.
        gone: Files that were there as the increment was planned.
        repeated: Files with the rows of another one, and which; they are left out if `input.dedupe_files` asks for it.
        told: Warnings of what its files add, lack or hide.
    """

    frame: DataFrame
    counts: Counts
    ignored: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    repeated: dict[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()


def read_frame(frame: DataFrame) -> Readable:
    """Read an increment that is not made of files.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return Readable(frame, count(frame))
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error


def read_planned(
    spark: SparkSession,
    settings: Settings,
    schema: StructType,
    planned: Sequence[SeenFile],
    known: Sequence[ReadFile] = (),
    *,
    hold: bool = False,
) -> Readable:
    """Read an increment's files, leaving some out as a whole until the rest can be read.

    A file that is gone fails no job: the checkpoint would ask for it in every run to come.

    Args:
        spark: The session.
        settings: The job.
        schema: Of the input.
        planned: The files.
        known: Files of earlier increments.
        hold: Spark is to keep the rows, so that they are not read again to be scored; whoever asks has them let go.

    Raises:
        InputError: A file is there and cannot be read, and is not to be ignored; or nothing of the input is there.
    """
    left, ignored, gone = {file.path: file for file in planned}, list[SeenFile](), list[SeenFile]()
    repeated: dict[str, str] = {}
    while True:
        read = _try_to_read(spark, settings, schema, [file.uri for file in left.values()], hold=hold)
        # Files without rows are not counted, nor is one that went away between Spark's first look at it and its second.
        whole = isinstance(read, Readable) and (read.counts.files or 0) == len(left)
        if out := [] if whole else find_gone(str(settings.input.path), left.values()):
            gone += out
            if isinstance(read, Readable):
                let_go(read)
        elif isinstance(read, Readable):
            found = find_repeated(read.counts.read or (), known)
            repeated |= found
            if not (out := _to_leave_out(found, left) if settings.input.dedupe_files else []):
                out_uris, gone_uris = (tuple(file.uri for file in files) for files in (ignored, gone))
                return replace(read, ignored=out_uris, gone=gone_uris, repeated=repeated)
            let_go(read)
        else:
            out = [_to_ignore(read, settings, left)]
            ignored += out
        for file in out:
            del left[file.path]


def _to_leave_out(repeated: Iterable[str], left: dict[str, SeenFile]) -> list[SeenFile]:
    return [left[path_of(uri)] for uri in repeated]


def count(frame: DataFrame, raw: str | None = None, swallowed: Column | None = None) -> Counts:
    """Count an increment; every column is read, and of files a hash of their rows is made.

    Args:
        frame: Its rows.
        raw: The column for records that do not fit.
        swallowed: Whether a row seems to hold others.
    """
    from pyspark.sql import functions as F

    columns = [(c, kind) for c, kind in frame.dtypes if c not in (FILE, FILE_SIZE, FILE_TIME)]
    row = F.xxhash64(F.lit(0), *(hashable(c, kind) for c, kind in columns))
    bad = column(raw).isNotNull() if raw is not None and raw in frame.columns else F.lit(False)
    if FILE not in frame.columns:
        counted = frame.agg(F.count(F.lit(1)).alias("rows"), F.max(row)).collect()[0]
        return Counts(counted["rows"])
    halves = F.sum(F.shiftright(row, 32)).alias("high"), F.sum(row.bitwiseAND(F.lit(0xFFFFFFFF))).alias("low")
    told = F.count_if(bad).alias("malformed"), F.count_if(F.lit(False) if swallowed is None else swallowed).alias("odd")
    rows = F.count(F.lit(1)).alias("rows")
    by_file = frame.groupBy(FILE, FILE_SIZE, FILE_TIME).agg(rows, *halves, *told).collect()
    read = tuple(
        ReadFile(f[FILE], f[FILE_SIZE], f[FILE_TIME], f["rows"], f"{f['high']},{f['low']}", f["malformed"])
        for f in by_file
    )
    return Counts(sum(file.rows for file in read), read, {f[FILE]: f["odd"] for f in by_file if f["odd"]})


def count_rows(frame: DataFrame) -> int:
    """Count rows as cheaply as their source allows; nothing else of them is read.

    Raises:
        InputError: They cannot be read.
    """
    try:
        return frame.count()
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error


def let_go(read: Readable) -> None:
    """Have Spark hold an increment's rows no more, if it does."""
    read.frame.unpersist()


def _try_to_read(
    spark: SparkSession, settings: Settings, schema: StructType, uris: list[str], *, hold: bool
) -> Readable | Exception:
    try:
        return read_whole(spark, settings, schema, uris, hold=hold)
    except SPARK_ERRORS as error:
        return error


def read_whole(
    spark: SparkSession, settings: Settings, schema: StructType, uris: list[str], *, hold: bool = False
) -> Readable:
    """Read files through; CSV files by their own headers, where these are not all the same as the first one's.

    Args:
        spark, settings, schema, hold: As `read_planned`.
        uris: The files.

    Raises:
        InputError: A file lacks a column that is needed.
        Exception: Of Spark: it cannot read one.
    """
    source = settings.input
    try:
        return _read_through(spark, settings, schema, uris, {}, hold=hold)
    except SPARK_ERRORS as error:
        if not (has_headers(source) and unreadable_file(error)):
            raise
    headers = read_headers(spark, source, uris)
    told = tell_headers(headers, schema, source, settings.input_columns())
    read = _read_through(spark, settings, schema, uris, headers, hold=hold)
    return replace(read, told=(*told, *read.told))


def _read_through(
    spark: SparkSession, settings: Settings, schema: StructType, uris: list[str], headers: Headers, *, hold: bool
) -> Readable:
    source = settings.input
    lines = look_at_lines(spark, source, uris, small=hold)
    frame = read_files(spark, settings, schema, uris, headers, joined=lines.joined)
    if hold:
        frame = frame.persist()
    try:
        counts = count(frame, raw_column(source), is_swallowed(schema, source, uris, frame.columns))
    except SPARK_ERRORS:
        frame.unpersist()
        raise
    return Readable(frame, counts, told=(*lines.warnings(counts.malformed), *tell_swallowing(counts.swallowing)))


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
