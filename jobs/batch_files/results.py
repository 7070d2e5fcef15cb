"""Results of requests as a service writes them: a line for each line, once, in the order of the requests."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from jobs.batch_files.lines import read_laid_out, work_of
from jobs.batch_files.summary import Counts, summarize
from jobs.folder import Folder
from jobs.output.directory import Output
from jobs.settings import BATCH_FORMATS, Settings
from udfs.batch_api import anthropic, openai
from udfs.batch_api.requests import Line, read_object

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def write_results(spark: SparkSession, asked: Settings, run: Settings, *, started_at: float) -> Counts:
    """Write a job's results file, the file of its failures and the summary, each at once.

    Args:
        spark: The session.
        asked: The job as it was asked for, whose output is a results file.
        run: The job as it was run, whose output is rows.
        started_at: When the run began, in seconds since 1970.

    Returns:
        What became of the requests.
    """
    is_openai = asked.output.format == "openai-batch"
    path = asked.output.path
    errors = (asked.output.errors or f"{path}.errors") if is_openai else None
    counts = Counts(Counter())
    with contextlib.ExitStack() as stack:
        good = _Lines(stack.enter_context(_open(path)), ends=is_openai)
        bad = _Lines(stack.enter_context(_open(errors)), ends=True) if errors else good
        for line, kind, usage in _list_lines(spark, asked, run):
            (good if kind == "succeeded" else bad).write(line)
            counts.by_kind[kind] += 1
            if usage is not None and kind == "succeeded":
                counts.input_tokens += usage["input_tokens"]
                counts.cached_tokens += usage["cached_tokens"]
                counts.output_tokens += usage["output_tokens"]
    parent, name = _part(path)
    summary = summarize(asked, counts, started_at=started_at, ended_at=time.time(), errors=errors)
    Folder(parent).write_json(f"{name}.batch.json", summary)
    return counts


def has_results(asked: Settings) -> bool:
    """The results file of a job that was asked for one is there."""
    parent, name = _part(asked.output.path)
    return asked.output.format not in BATCH_FORMATS or Folder(parent).exists(f"{name}.batch.json")


class _Lines:
    """A file of lines.

    Args:
        stream: Where they go.
        ends: Each ends with a line feed; else there is one between two.
    """

    def __init__(self, stream: BinaryIO, *, ends: bool) -> None:
        self._stream, self._ends, self._count = stream, ends, 0

    def write(self, line: str) -> None:
        before = b"\n" if self._count and not self._ends else b""
        self._stream.write(before + line.encode() + (b"\n" if self._ends else b""))
        self._count += 1


def _part(path: str) -> tuple[str, str]:
    parent, slash, name = path.rpartition("/")
    return (parent or "/") if slash else ".", name


@contextlib.contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    parent, name = _part(path)
    folder = Folder(parent)
    folder.make()
    with folder.writing(name) as stream:
        yield stream


def _list_lines(spark: SparkSession, asked: Settings, run: Settings) -> Iterator[tuple[str, str, Any]]:
    """Lines in the order of the requests, with what became of each and what it cost."""
    from pyspark.sql import functions as F

    rows, result = _committed(spark, run), run.output.name
    ordered = ["source", "line"] if asked.input.format in BATCH_FORMATS else []
    told = rows.select(
        *ordered,
        F.col(f"`{result}`.line").alias("told"),
        F.coalesce(F.col(f"`{result}`.error.code"), F.lit("succeeded")).alias("kind"),
        F.col(f"`{result}`.usage").alias("usage"),
    )
    if not ordered:
        yield from map(_tell, told.toLocalIterator())
        return
    left = iter(read_laid_out(Folder(work_of(asked))))
    dialect = openai if asked.dialect() == "openai-batch" else anthropic
    for row in told.orderBy(*ordered).toLocalIterator():
        for missing in left:
            if (missing["source"], missing["line"]) == (row["source"], row["line"]):
                break
            yield _expire(missing, dialect)
        yield _tell(row)
    for missing in left:
        yield _expire(missing, dialect)


def _committed(spark: SparkSession, run: Settings) -> DataFrame:
    """Each row once: one that a retry has mended as it is now."""
    output = Output(run)
    rows = output.frames.read_marked(spark, output.marks())
    if run.input.format not in BATCH_FORMATS:
        return rows
    mended = rows.where("increment >= 1000000").select("source", "line")
    return rows.where("increment >= 1000000").unionByName(
        rows.where("increment < 1000000").join(mended, ["source", "line"], "left_anti")
    )


def _tell(row: Any) -> tuple[str, str, Any]:
    kind = row["kind"] if row["kind"] in ("succeeded", "expired") else "failed"
    return row["told"], kind, row["usage"]


def _expire(missing: dict[str, Any], dialect: Any) -> tuple[str, str, Any]:
    """The line of a request that no increment holds."""
    told, _ = read_object(missing["request"])
    return dialect.write_line(Line(told.get("custom_id")), openai.expired()), "expired", None
