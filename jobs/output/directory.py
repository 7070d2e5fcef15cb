"""The output directory: who works in it, and how an increment gets into it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

from jobs import folder as files
from jobs.errors import SPARK_ERRORS, BusyError, InputError, JobError, OutputError, explain
from jobs.input.checkpoint import Checkpoint
from jobs.input.files import ReadFile
from jobs.input.sources import Kind, find_kind
from jobs.output.adopting import read_committed
from jobs.output.apart import check_apart
from jobs.output.checks import check_ours, check_whole
from jobs.output.committed import Committed, Increment, count_outcomes, name_of
from jobs.output.fingerprint import describe, differences, make_key, tell_versions
from jobs.output.frames import WRITE_CONF, Frames
from jobs.output.job_note import HOME, LIVE, RUNS, find_job, write_job
from jobs.output.lock import Claim, hold_lock
from jobs.output.marks import Mark
from jobs.output.merging import DELETED, as_deleted, tell_unkeyed
from jobs.output.partitions import tell_guessed
from jobs.output.parts import write_parts
from jobs.output.placing import clean_draft, keep_apart, put_in_place
from jobs.output.state import WRITING, JobState, sealed
from jobs.output.table_columns import check_columns, check_is_output, check_unused, columns_of
from jobs.output.tables import Table, Transaction, open_table
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
        self.path = settings.output.state_path
        self._called = f"{'output.state' if settings.output.is_table else 'output.path'} {self.path}"
        self.folder = files.Folder(self.path)
        self.frames = Frames(self.folder, settings, lambda: self._job_file().get("partitions"))
        self._columns: StructType | None = None  # of the table
        self._state = JobState(self.folder, claim or Claim(), home, in_table=settings.output.is_table)
        if self.folder.is_file():
            raise OutputError(f"{self._called} is a file; name a directory")

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
                raise OutputError(f"cannot write to {self._called}: {error}") from error
            stack.callback(self._tidy)
            yield self._state.claim

    def check(self, spark: SparkSession, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            OutputError: It holds other files or another job's results, or an increment or the checkpoint is gone.
        """
        given = self._settings.output
        files.check_scheme(spark, self.path, called="output.state" if given.state else "output.path")
        if given.path:
            files.check_scheme(spark, given.path)
        check_ours(self.folder)
        table = self._open_table(spark)
        if table is not None:
            check_apart(spark, self._settings)
        if overwrite or not self.is_begun():
            if table is not None:
                (check_is_output if overwrite else check_unused)(table, self._settings)
            return
        held = sealed(find_job(self.folder) or {})
        wanted = describe(self._settings, held["key"])
        if differs := differences(held.get("job", {}), wanted):
            raise OutputError(
                f"{self._called} holds another job's results (it differs in {', '.join(differs)}); "
                f"{tell_versions(held.get('job', {}), wanted)}name another directory, or start afresh with --overwrite"
            )
        self.check_whole(find_kind(spark, self._settings.input))
        if table is not None and any(mark.moved for mark in self.marks()) and not table.exists():
            raise OutputError(
                f"{table.place} is gone, and increments of this job are in it; put it back, or start afresh with "
                "--overwrite"
            )

    def _open_table(self, spark: SparkSession) -> Table | None:
        return open_table(spark, self._settings) if self._settings.output.is_table else None

    def prepare(self, frame: DataFrame, *, overwrite: bool) -> None:
        """Make the table that answers go to, where it is not there; of directories nothing has to be made.

        Args:
            frame: The input.
            overwrite: One that is there is replaced with the first increment.

        Raises:
            OutputError: It cannot be made, or rows cannot be merged into it.
        """
        if (table := self._open_table(frame.sparkSession)) is None:
            return
        self._columns = columns_of(frame, self._settings)
        is_new = not table.exists()
        if is_new:
            table.create(self._columns)
        if self._settings.output.mode == "merge" and (is_new or not overwrite):
            table.check_merges(self._settings.key())

    def check_whole(self, kind: Kind) -> None:
        """Refuse an output that has lost what the checkpoint takes for done, or the checkpoint.

        Raises:
            OutputError: It has.
        """
        check_whole(self.folder, self.marks, self.checkpoint(), kind)

    def is_begun(self) -> bool:
        """There is a job's output here."""
        return find_job(self.folder) is not None

    def begin(
        self,
        schema: StructType | None = None,
        *,
        spark: SparkSession | None = None,
        partitions: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Make the directory this job's. With `overwrite`, what is there goes as the first increment is committed.

        Args:
            schema: The input's; later runs read files by it.
            spark: The session, by which increments get into a table that a kill has kept from it.
            partitions: Types of the columns that are directories, as Spark's JSON has them.
            overwrite: Start afresh.

        Raises:
            OutputError: It cannot be written to, is another driver's by now, or holds increments and no job file.
        """
        key = make_key()
        about = {"job": describe(self._settings, key), "schema": schema.jsonValue() if schema else None, "key": key}
        if self._settings.output.is_table:
            about |= {"id": uuid.uuid4().hex[:16], "in_table": True, "afresh": overwrite}
        elif partitions:
            about |= {"partitions": dict(partitions)}
        try:
            self._state.begin(about, lambda mark: self._put(mark, spark), overwrite=overwrite)
        except OSError as error:
            raise OutputError(f"cannot write to {self._called}: {error}") from error

    def settle_last(self, spark: SparkSession | None = None) -> None:
        """The job has ended, and is whose output this is: also where there was nothing to commit.

        Raises:
            JobError: The old results cannot be thrown away; the next run does so.
        """
        self._state.claim.check()
        try:
            self._state.take_over()
            if self._job_file().get("afresh") and not self.marks():
                self._empty_table(spark)
        except OSError as error:
            raise JobError(f"{self._called} cannot be taken over from the job before: {error}") from error

    def _empty_table(self, spark: SparkSession | None) -> None:
        """Take the old job's rows out of a table to which a new one has nothing to add."""
        if spark is not None and self._columns is not None and (table := self._open_table(spark)):
            try:
                table.empty(self._columns)
            except SPARK_ERRORS as error:
                raise JobError(f"{table.place} cannot be emptied: {explain(error)}") from error
            write_job(self.folder, {**(find_job(self.folder) or {}), "afresh": False}, self._state.claim.owner)

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
            raise OutputError(f"{self._called} already holds this job's results; score them again with --overwrite")
        if (table := self._open_table(frame.sparkSession)) is not None:
            check_columns(table, columns_of(frame, self._settings))
        elif kind in ("table", "iceberg"):
            self._check_types(frame)
        if self._settings.input.changes == "follow" and kind not in ("table", "iceberg"):
            raise InputError("input.changes: follow is for tables of Delta and Iceberg, whose logs tell of changes")

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
        gone: DataFrame | None = None,
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
            gone: Keys of rows that a merged table is to have no more.
            about: More of what `Increment` holds; `began` (of time.monotonic) instead of `seconds`.

        Raises:
            JobError: There are more rows or fewer, or the increment is committed already.
            BusyError: The output is another driver's by now.
        """
        draft = self.draft_of(name_of(number), run_id)
        try:
            if by_workers is not None and self.folder.is_disk:
                with spark_conf(scored.sparkSession, WRITE_CONF):
                    counts = write_parts(self.folder, draft, by_workers)
            else:
                self.frames.write(scored, draft)
                with named(scored.sparkSession, f"increment {number}: count"):
                    counts = count_outcomes(self.frames.read(scored.sparkSession, draft), self._settings.output.result)
            if rows is not None and counts.rows != rows:
                raise JobError(
                    f"increment {number} was read as {rows:,} rows and written as {counts.rows:,}, and is not "
                    "committed: its input, or what was written of it, was changed meanwhile"
                )
        except Exception:
            with contextlib.suppress(OSError):  # whoever reads `OUT/**/*.parquet` would take them for results
                self.folder.delete(draft)
            raise
        if self._settings.output.mode == "merge":
            about = self._look_at_keys(draft, scored.sparkSession, gone, about)
        if kinds := self._job_file().get("partitions"):
            paths = [file.name for file in self.folder.walk(draft)]
            about = {**about, "told": (*about.get("told", ()), *tell_guessed(paths, kinds))}
        if read is not None:
            self.folder.write_json(self._files_of(number), [astuple(file) for file in read], indent=None)
        return self.commit(draft, number, counts=counts, run_id=run_id, spark=scored.sparkSession, **about)

    def _look_at_keys(
        self, draft: str, spark: SparkSession, gone: DataFrame | None, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Write down what is to go from a merged table; tell of rows that their keys do not tell apart."""
        rows, key = self.frames.read_as_written(spark, [self.folder / draft]), self._settings.key()
        told = [*about.get("told", ()), *tell_unkeyed(rows, key, self._settings.output.place)]
        deleted = 0
        if gone is not None and (deleted := gone.count()):
            wanted = as_deleted(gone, rows.drop("outcome"))
            with spark_conf(spark, WRITE_CONF):
                wanted.write.mode("append").parquet(self.folder / f"{draft}/outcome={DELETED}")
        return {**about, "told": tuple(told), "deleted": deleted}

    def draft_of(self, name: str, run_id: str) -> str:
        """Where rows are written that are to be at `name`."""
        return f"{WRITING}/{run_id}/{name}"

    def read_rows(self, spark: SparkSession) -> DataFrame:
        """All that is committed; there is an increment at least."""
        if (table := self._open_table(spark)) is None:
            return self.frames.read_marked(spark, self.marks())
        return self.frames.with_struct(table.read())

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
        spark: SparkSession | None = None,
        **about: Any,
    ) -> Increment:
        """Mark an increment that is written as committed, and put it in its place; see `place`."""
        seconds = 0.0 if began is None else round(time.monotonic() - began, 3)
        made = Increment(number=number, run_id=run_id, committed_at="", seconds=seconds, counts=counts, **about)
        return self.place(draft, made, name, spark=spark)

    def place(
        self, draft: str, made: Increment, name: str | None = None, *, spark: SparkSession | None = None
    ) -> Increment:
        """Commit rows that are written: mark them, and put them in their place.

        Args:
            draft: Where they are written.
            made: What they are.
            name: Their place; None takes the one where readers look for it.
            spark: The session, where that is a table.

        Raises:
            BusyError: The output is another driver's by now.
            JobError: Something is committed there: no second look at it may find less than the first.
        """
        self._state.claim.check()
        kept = name is not None
        name = name or self._state.place_of(made.number)
        marks = self._state.kept_marks() if kept else self._state.marks()
        if marks.is_there(name):
            raise JobError(f"{name} of {self._called} is committed already, and nothing replaces it")
        rows = clean_draft(self.folder, draft)
        if kept:
            rows = keep_apart(self.folder, draft, rows)
        self.folder.sync(draft)
        self._state.claim.check()
        mark = marks.write(Mark(name, made, rows, draft), self._state.claim.owner)
        self._state.claim.check()
        if not marks.counts(name, self._state.claim.owner):
            raise BusyError(f"{name} of {self._called} was committed by another driver too, whose rows count")
        self._state.take_over()
        if kept:
            put_in_place(self.folder, mark, self._state.claim.check)
        else:
            self._put(mark, spark)
        return mark.made

    def _put(self, mark: Mark, spark: SparkSession | None) -> None:
        """Put a committed increment where readers find it; can be repeated."""
        if self._settings.output.is_table and not mark.moved:
            mark = self._move(mark, spark)
        if mark.moved:
            there = self.folder.walk(mark.draft)
            self.folder.delete_files(f"{mark.draft}/{f.name}" for f in there if f.name not in mark.files)
        put_in_place(self.folder, mark, self._state.claim.check)
        if mark.moved:
            self.folder.delete(mark.draft)

    def _move(self, mark: Mark, spark: SparkSession | None) -> Mark:
        """Get an increment into the table, in one transaction that is done once however often this is called.

        Raises:
            JobError: It cannot be; the rows stay where they were written.
        """
        from pyspark.sql import SparkSession
        from pyspark.sql import functions as F

        session, made, held = spark or SparkSession.active(), mark.made, self._job_file()
        is_first = not any(other.moved for other in self._state.marks().read())
        series = "retries" if made.is_retry else "increments"
        once = Transaction(held["id"], series, made.number, since=made.committed_at)
        try:
            rows = self.frames.read_as_written(session, [self.folder / mark.draft])
            rows = rows.withColumn("increment", F.lit(made.number))
            with named(session, f"increment {made.number}: write to the table"):
                open_table(session, self._settings).put(rows, once, replaces=bool(held.get("afresh")) and is_first)
        except SPARK_ERRORS as error:
            raise JobError(
                f"increment {made.number} is scored and kept, and cannot be written to {self._settings.output.place}: "
                f"{explain(error)}; the same command tries again"
            ) from error
        self._state.claim.check()
        failed = {name: size for name, size in mark.files.items() if name.startswith("outcome=failed/")}
        mark = replace(mark, files=failed, moved=True)
        self._state.marks().keep(mark, self._state.claim.owner)
        return mark

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
        held = dict(self.frames.read(frame.sparkSession, place).dtypes)
        changed = [
            f"{name} is {kind} and was {held[name]}" for name, kind in frame.dtypes if held.get(name, kind) != kind
        ]
        if changed:
            raise OutputError(
                f"the input's types have changed since {self._called} was begun ({', '.join(changed)}): no "
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
