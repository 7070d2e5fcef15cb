"""The output directory: who works in it, and how an increment gets into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from jobs import folder as files
from jobs.errors import BusyError, JobError, OutputError
from jobs.input.checkpoint import Checkpoint
from jobs.input.files import ReadFile
from jobs.input.sources import Kind, find_kind
from jobs.output.adopting import read_committed
from jobs.output.checks import check_ours, check_whole
from jobs.output.committed import Committed, Increment, count_outcomes, name_of
from jobs.output.fingerprint import describe, differences, make_key
from jobs.output.job_note import HOME, LIVE, RUNS, find_job, write_job
from jobs.output.lock import Claim, hold_lock
from jobs.output.marks import Mark
from jobs.output.parts import write_parts
from jobs.output.placing import clean_draft, keep_apart, put_in_place
from jobs.output.state import WRITING, JobState, sealed
from jobs.settings import Settings
from jobs.spark.naming import named
from jobs.spark.session import spark_conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

    from udfs.tasks.quantizing import Ranges

_LOCK = f"{HOME}/lock"
_NOTHING_LEFT = f"{HOME}/nothing-left.json"
_NO_STATE = (_LOCK, _NOTHING_LEFT, f"{RUNS}/", LIVE)  # what comes and goes while nothing is scored
# Rows of a task reach Python in Arrow batches of this size; a window is put together from several.
_ARROW_ROWS = 1024
_WRITE_CONF = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ARROW_ROWS),
    "spark.sql.maxConcurrentOutputFileWriters": "4",  # both outcomes at once, without a sort
    "spark.sql.sources.partitionOverwriteMode": "static",
}


class Output:
    """One job's output directory.

        increment=000000/   what readers see: committed increments, rows and nothing else
        _gristmill/
            job.json        whose output it is: fingerprint, layout, the input's schema, where its state is
            lock            held by the driver that works here; on a store, `lock-leases/`
            marks/          what is committed: an increment's sums and files
            files/          of each increment, the input's files as they were read
            checkpoint/     Structured Streaming's own
            retries/        the rows of each retry, those that failed again among them, and their marks
            writing/        increments on their way, by run
            runs/           a report of each run that ended
            live.json       how the run that works here stands, or how the last one ended
            nothing-left.json   what the last run saw, if it has left nothing of it

    A job that starts afresh keeps its state in `_gristmill/job-<id>/` instead. Until it commits its first increment
    that is a draft, and the output is still the old job's.

    Args:
        settings: The job.
        claim: That the output is this driver's, where something is to be committed; `lock` makes one.
        home: Where the job's state is; None looks it up in the job file.

    Raises:
        OutputError: It is a file, or its scheme cannot be reached.
    """

    def __init__(self, settings: Settings, claim: Claim | None = None, home: str | None = None) -> None:
        self._settings = settings
        self.path = settings.output.path
        self.folder = files.Folder(self.path)
        self._state = JobState(self.folder, claim or Claim(), home)
        if self.folder.is_file():
            raise OutputError(f"output.path {self.path} is a file; name a directory")

    @property
    def home(self) -> str:
        """Where this job's state is."""
        return self._state.home

    @contextlib.contextmanager
    def lock(self, on_lost: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Be the only driver here while the body runs. On a disk, an empty directory that this makes goes away again.

        Args:
            on_lost: Is called, again and again, once another driver has taken over.

        Raises:
            BusyError: Another driver works here.
            OutputError: The directory holds something else, or cannot be written to.
        """
        check_ours(self.folder)
        with contextlib.ExitStack() as stack:
            try:
                self._state.claim = stack.enter_context(hold_lock(self.folder, _LOCK, on_lost))
            except OSError as error:
                raise OutputError(f"cannot write to output.path {self.path}: {error}") from error
            stack.callback(self._tidy)
            yield self._state.claim

    def check(self, spark: SparkSession, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            OutputError: It holds other files or another job's results, or an increment or the checkpoint is gone.
        """
        files.check_scheme(spark, self.path)
        check_ours(self.folder)
        if overwrite or not self.is_begun():
            return
        held = sealed(find_job(self.folder) or {})
        differs = differences(held.get("job", {}), describe(self._settings, held["key"]))
        if differs:
            raise OutputError(
                f"output.path {self.path} holds another job's results (it differs in {', '.join(differs)}); "
                "name another directory, or start afresh with --overwrite"
            )
        self.check_whole(find_kind(spark, self._settings.input))

    def check_whole(self, kind: Kind) -> None:
        """Refuse an output that has lost what the checkpoint takes for done, or the checkpoint.

        Raises:
            OutputError: It has.
        """
        check_whole(self.folder, self.marks, self.checkpoint(), kind)

    def is_begun(self) -> bool:
        """There is a job's output here."""
        return find_job(self.folder) is not None

    def begin(self, schema: StructType | None = None, *, overwrite: bool = False) -> None:
        """Make the directory this job's. With `overwrite`, what is there goes as the first increment is committed.

        Args:
            schema: The input's; later runs read files by it.
            overwrite: Start afresh.

        Raises:
            OutputError: It cannot be written to, is another driver's by now, or holds increments and no job file.
        """
        key = make_key()
        about = {"job": describe(self._settings, key), "schema": schema.jsonValue() if schema else None, "key": key}
        try:
            self._state.begin(about, overwrite=overwrite)
        except OSError as error:
            raise OutputError(f"cannot write to output.path {self.path}: {error}") from error

    def settle_last(self) -> None:
        """The job has ended, and is whose output this is: also where there was nothing to commit.

        Raises:
            JobError: The old results cannot be thrown away; the next run does so.
        """
        self._state.claim.check()
        try:
            self._state.take_over()
        except OSError as error:
            raise JobError(f"output.path {self.path} cannot be taken over from the job before: {error}") from error

    def ranges(self) -> Ranges | None:
        """What int8 vectors of this job go by; None where it is not measured yet."""
        return self._job_file().get("ranges")

    def keep_ranges(self, ranges: Ranges) -> None:
        """Keep the ranges that all vectors of this job are to go by.

        Raises:
            BusyError: The output is another driver's by now.
        """
        self._state.claim.check()
        held = {**self._job_file(), "ranges": ranges}
        if self._is_draft():
            self.folder.write_json(f"{self.home}/job.json", held)
        else:
            write_job(self.folder, held, self._state.claim.owner)

    def _is_draft(self) -> bool:
        """The job starts afresh, and the output is still the old one's."""
        return bool((find_job(self.folder) or {}).get("home", HOME) != self.home)

    def _job_file(self) -> dict[str, Any]:
        """This job's own file."""
        if self._is_draft():
            return self.folder.find_json(f"{self.home}/job.json") or {}
        return find_job(self.folder) or {}

    def schema(self) -> StructType | None:
        """The input's schema as the first run found it."""
        from pyspark.sql.types import StructType

        kept = (find_job(self.folder) or {}).get("schema")
        return StructType.fromJson(kept) if kept else None

    def check_input(self, frame: DataFrame, kind: Kind) -> None:
        """Refuse an input that does not go on with what is committed.

        Raises:
            OutputError: All of it is scored, as it can be only once; or its columns have other types than in what is
                committed, and no reader could read both.
        """
        if kind == "once" and self.marks():
            raise OutputError(
                f"output.path {self.path} already holds this job's results; score them again with --overwrite"
            )
        if kind in ("table", "iceberg"):
            self._check_types(frame)

    def is_committed(self, number: int) -> bool:
        """An increment has its mark."""
        return self._state.marks().is_there(name_of(number))

    def marks(self, known: Sequence[Mark] = ()) -> list[Mark]:
        """All that is committed, in order; see `Marks.read`."""
        if self._state.is_looked_up:
            return read_committed(self.folder, find_job(self.folder), known)
        return self._state.marks().read(known)

    def increments(self) -> list[Increment]:
        """All that is committed, in order."""
        return [mark.made for mark in self.marks()]

    def retries(self) -> list[Mark]:
        """The retries whose rows are kept, in order; a kill may have hidden the last one from readers."""
        return self._state.kept_marks().read()

    def kept_name(self, number: int) -> str:
        """The directory of all that a retry has scored, those rows among it that failed again."""
        return f"{self.home}/retries/{name_of(number)}"

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder, f"{self.home}/checkpoint")

    @property
    def checkpoint_path(self) -> str:
        """The checkpoint, as Spark takes it."""
        return self.folder / f"{self.home}/checkpoint"

    def write(
        self,
        scored: DataFrame,
        number: int = 0,
        *,
        run_id: str = "run",
        by_workers: Callable[[str], DataFrame] | None = None,
        rows: int | None = None,
        read: Sequence[ReadFile] | None = None,
        **about: Any,
    ) -> Increment:
        """Write one increment aside, count what was written, commit it, and put it in its place.

        Where a directory can be renamed, readers see all of it or nothing. On an object store they see its files come.

        Args:
            scored: Its rows, with their outcome.
            number: Its number; what is there under it, uncommitted, is replaced.
            read: The input's files as they were read, where they are told.
            run_id: Who writes.
            by_workers: Has the workers write the same rows below a directory that they share with the driver.
            rows: How many there must be; None where the input may change while it is read.
            about: More of what `Increment` holds; `began` (of time.monotonic) instead of `seconds`.

        Raises:
            JobError: There are more rows or fewer, or the increment is committed already.
            BusyError: The output is another driver's by now.
        """
        draft = self.draft_of(name_of(number), run_id)
        try:
            if by_workers is not None and self.folder.is_disk:
                with spark_conf(scored.sparkSession, _WRITE_CONF):
                    counts = write_parts(self.folder, draft, by_workers)
            else:
                self.write_rows(scored, draft)
                with named(scored.sparkSession, f"increment {number}: count"):
                    counts = count_outcomes(self.read(scored.sparkSession, draft), self._settings.output.name)
            if rows is not None and counts.rows != rows:
                raise JobError(
                    f"increment {number} was read as {rows:,} rows and written as {counts.rows:,}, and is not "
                    "committed: its input, or what was written of it, was changed meanwhile"
                )
        except Exception:
            with contextlib.suppress(OSError):  # whoever reads `OUT/**/*.parquet` would take them for results
                self.folder.delete(draft)
            raise
        if read is not None:
            self.folder.write_json(self._files_of(number), [astuple(file) for file in read], indent=None)
        return self.commit(draft, number, counts=counts, run_id=run_id, **about)

    def draft_of(self, name: str, run_id: str) -> str:
        """Where rows are written that are to be at `name`."""
        return f"{WRITING}/{run_id}/{name}"

    def write_rows(self, scored: DataFrame, name: str) -> None:
        """Write rows by Spark's committer, replacing what is there."""
        with spark_conf(scored.sparkSession, _WRITE_CONF):
            scored.write.mode("overwrite").partitionBy("outcome").parquet(self.folder / name)
            if not any(entry.startswith("outcome=") for entry in self.folder.entries(name)):
                empty = scored.drop("outcome").limit(0).coalesce(1)  # so that the schema of no rows can be read
                # Where rows are there, and the store has not told of them, one more file takes nothing away.
                empty.write.mode("append").parquet(self.folder / f"{name}/outcome=succeeded")

    def read(self, spark: SparkSession, name: str) -> DataFrame:
        """Rows of a directory that is not committed."""
        return spark.read.parquet(self.folder / name)

    def read_marked(self, spark: SparkSession, marks: Sequence[Mark], *, outcome: str = "") -> DataFrame:
        """Rows of what is committed: of the files that the marks name.

        Args:
            spark: The session.
            marks: Of one parent directory; there is one at least.
            outcome: Only `failed` rows, or `succeeded`; empty for both.
        """
        wanted = [path for mark in marks for path in mark.paths if f"/outcome={outcome}" in path]
        parent = self.folder / marks[0].place.rpartition("/")[0] if "/" in marks[0].place else self.path
        return spark.read.options(basePath=parent).parquet(*(self.folder / path for path in wanted))

    def read_files(self) -> dict[str, ReadFile]:
        """The input's files in committed increments, by their URIs, as they were when they were read.

        Raises:
            OSError: The store does not tell; the output is begun, so that their directory is there.
        """
        names = self.folder.entries(f"{self.home}/files", must_exist=True)
        committed = {f"{place}.json" for place in self._state.marks().places()}
        held = self.folder.read_all_json([f"{self.home}/files/{name}" for name in names if name in committed])
        return {file.uri: file for files in held for file in (ReadFile(*values) for values in files or [])}

    def _files_of(self, number: int) -> str:
        return f"{self.home}/files/{name_of(number)}.json"

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
        self._state.claim.check()
        kept = name is not None
        name, marks = name or name_of(made.number), self._state.kept_marks() if kept else self._state.marks()
        if marks.is_there(name):
            raise JobError(f"{name} of output.path {self.path} is committed already, and nothing replaces it")
        rows = clean_draft(self.folder, draft)
        if kept:
            rows = keep_apart(self.folder, draft, rows)
        self.folder.sync(draft)
        self._state.claim.check()
        mark = marks.write(Mark(name, made, rows, draft), self._state.claim.owner)
        self._state.claim.check()
        if not marks.counts(name, self._state.claim.owner):
            raise BusyError(f"{name} of output.path {self.path} was committed by another driver too, whose rows count")
        self._state.take_over()
        put_in_place(self.folder, mark, self._state.claim.check)
        return mark.made

    def key(self) -> str:
        """By which what is kept of the settings is sealed; empty where nothing is begun."""
        return str((find_job(self.folder) or {}).get("key", ""))

    def nothing_left(self) -> dict[str, Any] | None:
        """What the last run has kept with `keep_nothing_left`."""
        held: dict[str, Any] | None = self.folder.find_json(_NOTHING_LEFT)
        return held

    def keep_nothing_left(self, about: dict[str, Any]) -> None:
        """Keep what the next run can tell by that there is nothing to do. It may be lost: the next run looks itself.

        Raises:
            OSError: It cannot be written.
        """
        self.folder.write_json(_NOTHING_LEFT, about)

    def state_files(self) -> list[files.FileInfo]:
        """All files of the output that tell what is scored: results, marks, the checkpoint, in order."""
        found = (file for file in self.folder.walk() if not file.name.startswith(_NO_STATE))
        return sorted(found, key=lambda file: file.name)

    def ended_badly(self, run_id: str) -> bool:
        """A run has ended since too many rows failed, and nobody has accepted that."""
        report = self.folder.find_json(f"{RUNS}/{run_id}.json") or {}
        accepted = (find_job(self.folder) or {}).get("accepted_run")
        return bool(report.get("too_many_failed")) and accepted != run_id

    def accept_failures(self) -> None:
        """Keep that the failures of the last run are accepted; the output is this driver's."""
        scored = [increment.run_id for increment in self.increments() if not increment.is_retry]
        if scored:
            write_job(
                self.folder, {**(find_job(self.folder) or {}), "accepted_run": scored[-1]}, self._state.claim.owner
            )

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

    def _check_types(self, frame: DataFrame) -> None:
        first = self.marks()[:1]
        if not first:
            return
        place = first[0].place if self.folder.exists(first[0].place) else first[0].draft  # of a driver that was killed
        held = dict(self.read(frame.sparkSession, place).dtypes)
        changed = [
            f"{name} is {kind} and was {held[name]}" for name, kind in frame.dtypes if held.get(name, kind) != kind
        ]
        if changed:
            raise OutputError(
                f"the input's types have changed since output.path {self.path} was begun ({', '.join(changed)}): no "
                "reader could read both; name another directory, or start afresh with --overwrite"
            )

    def _tidy(self) -> None:
        """Leave nothing where nothing was begun: the lock's own files, and directories that are empty then."""
        with contextlib.suppress(OSError):
            if self.folder.is_local and find_job(self.folder) is None:
                for name in (_LOCK, f"{_LOCK}.json"):
                    self.folder.local_path(name).unlink(missing_ok=True)
                self.folder.local_path(HOME).rmdir()
                self.folder.local_path().rmdir()
