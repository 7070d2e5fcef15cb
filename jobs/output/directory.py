"""The output directory: who works in it, and how an increment gets into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs import folder as files
from jobs.errors import JobError, OutputError
from jobs.input.checkpoint import Checkpoint
from jobs.input.sources import Kind, find_kind
from jobs.output.committed import MARK, Committed, Increment, count_outcomes, name_of, read_increments
from jobs.output.fingerprint import describe, differences, make_key, seal_description
from jobs.output.lock import Claim, hold_lock
from jobs.settings import Settings
from jobs.spark.session import spark_conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

_HOME = "_gristmill"
_LOCK = f"{_HOME}/lock"
_WRITING = f"{_HOME}/writing"
_RETRIES = f"{_HOME}/retries"
JOB = f"{_HOME}/job.json"
CHECKPOINT = f"{_HOME}/checkpoint"
RUNS = f"{_HOME}/runs"
# Rows of a task reach Python in Arrow batches of this size; a window is put together from several.
_ARROW_ROWS = 1024
_WRITE_CONF = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ARROW_ROWS),
    "spark.sql.maxConcurrentOutputFileWriters": "4",  # both outcomes at once, without a sort
    "spark.sql.sources.partitionOverwriteMode": "static",
}


class Output:
    """One job's output directory.

        increment=000000/   what readers see: committed increments, each with its mark in `_increment.json`
        _gristmill/
            job.json        whose output it is: fingerprint, layout, the input's schema
            lock            held by the driver that works here
            checkpoint/     Structured Streaming's own
            writing/        increments on their way, by run
            retries/        the rows of each retry, those that failed again among them
            runs/           a report of each run that ended

    Args:
        settings: The job.
        claim: That the output is this driver's, where something is to be committed; `lock` makes one.

    Raises:
        OutputError: It is a file, or its scheme cannot be reached.
    """

    def __init__(self, settings: Settings, claim: Claim | None = None) -> None:
        self._settings, self._claim = settings, claim or Claim()
        self.path = settings.output.path
        self.folder = files.Folder(self.path)
        if self.folder.is_file():
            raise OutputError(f"output.path {self.path} is a file; name a directory")

    @contextlib.contextmanager
    def lock(self, on_lost: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Be the only driver here while the body runs. On a disk, an empty directory that this makes goes away again.

        Args:
            on_lost: Is called, again and again, once another driver has taken over.

        Raises:
            BusyError: Another driver works here.
            OutputError: The directory holds something else, or cannot be written to.
        """
        self._check_ours()
        with contextlib.ExitStack() as stack:
            try:
                self._claim = stack.enter_context(hold_lock(self.folder, _LOCK, on_lost))
            except OSError as error:
                raise OutputError(f"cannot write to output.path {self.path}: {error}") from error
            stack.callback(self._tidy)
            yield self._claim

    def check(self, spark: SparkSession, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            OutputError: It holds other files or another job's results, or an increment or the checkpoint is gone.
        """
        files.check_scheme(spark, self.path)
        self._check_ours()
        if overwrite or not self.is_begun():
            return
        held = self._sealed(self.folder.read_json(JOB))
        differs = differences(held.get("job", {}), describe(self._settings, held["key"]))
        if differs:
            raise OutputError(
                f"output.path {self.path} holds another job's results (it differs in {', '.join(differs)}); "
                "name another directory, or start afresh with --overwrite"
            )
        self._check_whole(find_kind(spark, self._settings.input))

    def _sealed(self, held: dict[str, Any]) -> dict[str, Any]:
        """A job file whose description holds no secret."""
        if "key" in held:
            return held
        key = make_key()
        return {**held, "job": seal_description(held.get("job", {}), key), "key": key}

    def is_begun(self) -> bool:
        """There is a job's output here, and it is not one that is about to be thrown away."""
        held = self.folder.find_json(JOB)
        return held is not None and not held.get("thrown_away")

    def begin(self, schema: StructType | None = None, *, overwrite: bool = False) -> None:
        """Make the directory this job's.

        Args:
            schema: The input's; later runs read files by it.
            overwrite: Throw away what is there.

        Raises:
            OutputError: It cannot be written to, is another driver's by now, or holds increments and no job file.
        """
        self._claim.check()
        try:
            held = self.folder.find_json(JOB)
            if overwrite or (held is not None and held.get("thrown_away")):
                self._throw_away()
                held = None
            if held is None:
                self._check_no_increments()
                key = make_key()
                about = {"job": describe(self._settings, key), "schema": schema.jsonValue() if schema else None}
                self.folder.write_json(JOB, {**about, "key": key})
            elif "key" not in held:  # an earlier gristmill kept options in clear
                self.folder.write_json(JOB, self._sealed(held))
            self.folder.delete(_WRITING)  # of killed runs
        except OSError as error:
            raise OutputError(f"cannot write to output.path {self.path}: {error}") from error

    def schema(self) -> StructType | None:
        """The input's schema as the first run found it."""
        from pyspark.sql.types import StructType

        kept = self.folder.read_json(JOB).get("schema") if self.is_begun() else None
        return StructType.fromJson(kept) if kept else None

    def check_input(self, frame: DataFrame, kind: Kind) -> None:
        """Refuse an input that does not go on with what is committed.

        Raises:
            OutputError: All of it is scored, as it can be only once; or its columns have other types than in what is
                committed, and no reader could read both.
        """
        if kind == "once" and self.is_committed(0):
            raise OutputError(
                f"output.path {self.path} already holds this job's results; score them again with --overwrite"
            )
        if kind in ("table", "iceberg"):
            self._check_types(frame)

    def is_committed(self, number: int, name: str | None = None) -> bool:
        """An increment has its mark; `name` is its place, where it is not that of readers."""
        return self.folder.find_json(f"{name or name_of(number)}/{MARK}") is not None

    def increments(self) -> list[Increment]:
        """All that is committed, in order."""
        return read_increments(self.folder)

    def retries(self) -> list[int]:
        """Numbers of the retries whose rows are kept, in order; a kill may have hidden the last one from readers."""
        numbers = [int(name.partition("=")[2]) for name in self.folder.entries(_RETRIES)]
        return sorted(number for number in numbers if self.is_committed(number, kept_name(number)))

    def read_retry(self, number: int) -> Increment:
        """What a retry is whose rows are kept."""
        return Increment.from_json(self.folder.read_json(f"{kept_name(number)}/{MARK}"))

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder, CHECKPOINT)

    def write(
        self, scored: DataFrame, number: int = 0, *, run_id: str = "run", rows: int | None = None, **about: Any
    ) -> Increment:
        """Write one increment, count what was written, and commit it; readers see all of it or nothing.

        Where a directory can be renamed, the increment is written aside and put in its place in one step. An object
        store has no such step: there Spark's committer writes it in its place, and the mark comes last.

        Args:
            scored: Its rows, with their outcome.
            number: Its number; what is there under it, uncommitted, is replaced.
            run_id: Who writes.
            rows: How many there must be; None where the input may change while it is read.
            about: More of what `Increment` holds; `began` (of time.monotonic) instead of `seconds`.

        Raises:
            JobError: There are more rows or fewer, or the increment is committed already.
            BusyError: The output is another driver's by now.
        """
        if self.is_committed(number):  # where rows are written in their place, they would replace it
            raise self._committed_already(name_of(number))
        draft = self.draft_of(name_of(number), run_id)
        self.write_rows(scored, draft)
        counts = count_outcomes(self.read(scored.sparkSession, draft), self._settings.output.name)
        if rows is not None and counts.rows != rows:
            raise JobError(
                f"increment {number} was read as {rows:,} rows and written as {counts.rows:,}, and is not committed: "
                "its input, or what was written of it, was changed meanwhile"
            )
        return self.commit(draft, number, counts=counts, run_id=run_id, **about)

    def draft_of(self, name: str, run_id: str) -> str:
        """Where rows are written that are to be at `name`: there itself, where nothing can be renamed."""
        return f"{_WRITING}/{run_id}/{name}" if self.folder.renames else name

    def write_rows(self, scored: DataFrame, name: str) -> None:
        """Write rows by Spark's committer, replacing what is there."""
        with spark_conf(scored.sparkSession, _WRITE_CONF):
            scored.write.mode("overwrite").partitionBy("outcome").parquet(self.folder / name)
            if not any(entry.startswith("outcome=") for entry in self.folder.entries(name)):
                empty = scored.drop("outcome").limit(0).coalesce(1)  # so that the schema of no rows can be read
                empty.write.mode("overwrite").parquet(self.folder / f"{name}/outcome=succeeded")

    def read(self, spark: SparkSession, *names: str) -> DataFrame:
        """Rows of one directory, or of several of one parent: without it Spark takes each for a table of its own."""
        parent = {"basePath": self.folder / names[0].rpartition("/")[0]} if len(names) > 1 else {}
        return spark.read.options(**parent).parquet(*(self.folder / name for name in names))

    def commit(
        self,
        draft: str,
        number: int,
        *,
        counts: Committed,
        run_id: str,
        began: float | None = None,
        name: str | None = None,
        **about: Any,
    ) -> Increment:
        """Mark an increment that is written as committed, and put it in its place; see `place`."""
        seconds = 0.0 if began is None else round(time.monotonic() - began, 3)
        made = Increment(number=number, run_id=run_id, committed_at="", seconds=seconds, counts=counts, **about)
        return self.place(draft, made, name)

    def place(self, draft: str, made: Increment, name: str | None = None) -> Increment:
        """Commit rows that are written: mark them, and put them in their place.

        Args:
            draft: Where they are written.
            made: What they are.
            name: Their place; None takes the one where readers look for it.

        Raises:
            BusyError: The output is another driver's by now.
            JobError: Something is committed there: no second look at it may find less than the first.
        """
        self._claim.check()
        name = name or name_of(made.number)
        if self.is_committed(made.number, name):
            raise self._committed_already(name)
        self.folder.sync(draft)
        made = replace(made, committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
        self.folder.write_json(f"{draft}/{MARK}", asdict(made))
        if draft != name:
            self.folder.delete(name)
            self.folder.rename(draft, name)
        return made

    def ended_badly(self, run_id: str) -> bool:
        """A run has ended since too many rows failed, and nobody has accepted that."""
        report = self.folder.find_json(f"{RUNS}/{run_id}.json") or {}
        accepted = (self.folder.find_json(JOB) or {}).get("accepted_run")
        return bool(report.get("too_many_failed")) and accepted != run_id

    def accept_failures(self) -> None:
        """Keep that the failures of the last run are accepted; the output is this driver's."""
        scored = [increment.run_id for increment in self.increments() if not increment.is_retry]
        if scored:
            self.folder.write_json(JOB, {**self.folder.read_json(JOB), "accepted_run": scored[-1]})

    def _committed_already(self, name: str) -> JobError:
        return JobError(f"{name} of output.path {self.path} is committed already, and nothing replaces it")

    def write_report(self, run_id: str, report: dict[str, Any]) -> str:
        """Keep a run's report; returns its path.

        Raises:
            JobError: It cannot be written; what is committed stays.
        """
        name = f"{RUNS}/{run_id}.json"
        try:
            self.folder.write_json(name, report)
        except OSError as error:
            raise JobError(f"all is committed but the run's report, which cannot be written: {error}") from error
        return self.folder / name

    def _check_ours(self) -> None:
        entries = [entry for entry in self.folder.entries() if entry != _HOME]
        if entries and self.folder.find_json(JOB) is None:
            self._check_no_increments()
            raise OutputError(
                f"output.path {self.path} holds {entries[0]} and no gristmill job; name an empty directory"
            )

    def _check_no_increments(self) -> None:
        """What is committed is thrown away by `--overwrite` alone, whatever a file system says of the job file."""
        found = [entry for entry in self.folder.entries() if entry.startswith("increment=")]
        if found:
            raise OutputError(
                f"output.path {self.path} has {found[0]}, but its job file {JOB} is not there. Nothing was changed: "
                "run again if the file system did not answer, put the file back, or name another directory"
            )

    def _check_whole(self, kind: Kind) -> None:
        """Everything that the checkpoint takes for done is there: what was taken away would never be scored again.

        So is the checkpoint: a new one plans old and new rows under the number of what is committed.
        """
        first = [increment for increment in self.increments() if not increment.is_retry]
        there = {increment.number for increment in first}
        by_span = max((i.number for i in first if i.input_span is not None), default=-1)
        checkpoint = self.checkpoint()
        last = max(checkpoint.last_committed(), by_span)
        gone = sorted(set(range(last + 1)) - there)
        if gone:
            raise OutputError(
                f"output.path {self.path} has lost {name_of(gone[0])}, which had been committed; put it back, or start "
                "afresh with --overwrite"
            )
        # A run that was killed right after it committed increment 0 leaves a checkpoint that is no more than begun.
        is_lost = max(there, default=0) > 0 or (kind in ("files", "table") and not checkpoint.is_begun())
        if there and last < 0 and is_lost:
            raise OutputError(
                f"output.path {self.path} has increments, but {CHECKPOINT} is gone; put it back, or start afresh with "
                "--overwrite"
            )

    def _check_types(self, frame: DataFrame) -> None:
        first = next(iter(self.increments()), None)
        if first is None:
            return
        held = dict(self.read(frame.sparkSession, name_of(first.number)).dtypes)
        changed = [
            f"{name} is {kind} and was {held[name]}" for name, kind in frame.dtypes if held.get(name, kind) != kind
        ]
        if changed:
            raise OutputError(
                f"the input's types have changed since output.path {self.path} was begun ({', '.join(changed)}): no "
                "reader could read both; name another directory, or start afresh with --overwrite"
            )

    def _throw_away(self) -> None:
        """Empty the directory but for the lock. A kill in the middle leaves a note: here is nothing to go on with."""
        if self.folder.find_json(JOB) is not None:
            self.folder.write_json(JOB, {"thrown_away": True})
        for entry in self.folder.entries():
            if entry.startswith("increment="):
                self.folder.delete(entry)
        for entry in self.folder.entries(_HOME):
            if not entry.startswith(("lock", "job.json")):
                self.folder.delete(f"{_HOME}/{entry}")

    def _tidy(self) -> None:
        """Leave nothing where nothing was begun: the lock's own files, and directories that are empty then."""
        with contextlib.suppress(OSError):
            if self.folder.is_local and self.folder.find_json(JOB) is None:
                for name in (_LOCK, f"{_LOCK}.json"):
                    self.folder.local_path(name).unlink(missing_ok=True)
                self.folder.local_path(_HOME).rmdir()
                self.folder.local_path().rmdir()


def kept_name(number: int) -> str:
    """The directory of all that a retry has scored, those rows among it that failed again."""
    return f"{_RETRIES}/{name_of(number)}"
