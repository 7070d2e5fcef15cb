"""From the input to committed increments.

Of files and Delta tables one Structured Streaming query reads what is new, and then ends: Spark's checkpoint says which
files or table versions are in which increment, and a batch that is not over is replayed with the same rows under the
same number. Of Iceberg tables the marks of what is committed say where the next increment begins (see
`jobs.input.iceberg`). An increment that is committed already is never scored again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.errors import (
    SPARK_ERRORS,
    BusyError,
    DeadlineReached,
    JobError,
    OutputError,
    TooManyFailed,
    as_job_error,
    explain,
    pack_error,
    unpack_error,
)
from jobs.increments.batches import Answered, answer_in_batches, asked_span, join_replies
from jobs.increments.calibrating import settle_ranges
from jobs.increments.listener import Listener
from jobs.increments.malformed import add_malformed, readable_rows
from jobs.increments.parts import make_parts
from jobs.increments.plan import Plan, plan_partitions, score_frame
from jobs.increments.sizing import BATCHED_BYTES, bytes_per_s, choose_bytes, is_off, sample_bytes, take_for_full
from jobs.input.changes import explain_change, explain_vacuumed, is_bounded
from jobs.input.files import ReadFile
from jobs.input.following import leave_present, part_changes
from jobs.input.iceberg import Snapshot, next_span, read_span
from jobs.input.reading import Readable, let_go, read_frame, read_planned
from jobs.input.sources import Kind, explode_variants, read_now, read_stream, select_needed
from jobs.input.spans import Span
from jobs.output.committed import Committed, Increment, add_up
from jobs.output.directory import Output
from jobs.output.lock import Claim
from jobs.settings import Settings
from jobs.spark.interrupts import Stop
from jobs.spark.naming import named
from jobs.spark.session import count_slots, has_gpu, spark_conf
from udfs.errors import UNTRIED
from udfs.tasks.writing_options import WritingOptions

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

LEAST_ROWS = 100  # before so many, a share of failed rows says nothing
RESIZE = "[gristmill resize]"
_POLL_S = 0.2
_SMALL_BYTES, _HELD_BYTES = 64 << 10, 256 << 20  # files of so many on average; their rows are held by Spark
_STOP = "5s"  # for a query to stop: its increment's commit may hang in a store that does not answer
# Spark Connect gives the Python that commits increments ten seconds to start; a busy server takes longer now and then.
_SLOW_START = "Timed out while waiting for the Python worker to connect back"
_SLOW_STARTS = 3


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Args:
        run_id: Its name.
        started_at: When the command began.
        deadline: When it has to end.
        claim: That the output is its own.
        home: Where the job's state is in it; None looks it up.
    """

    run_id: str
    started_at: datetime
    deadline: datetime | None = None
    claim: Claim = field(default_factory=Claim)
    home: str | None = None

    def output(self, settings: Settings) -> Output:
        """The job's output."""
        return Output(settings, self.claim, self.home)

    def left_s(self) -> float | None:
        """Seconds until the deadline; negative once it has passed."""
        return None if self.deadline is None else (self.deadline - datetime.now(UTC)).total_seconds()

    def is_late(self) -> bool:
        return self.deadline is not None and datetime.now(UTC) >= self.deadline


@dataclass(frozen=True)
class _Scored:
    """An increment that is to be written.

    Args:
        rows: With their outcome.
        by_workers: Has the workers write the same rows, where they can.
        answered: By a provider's batches.
        told: What the user is to hear of it.
    """

    rows: DataFrame
    by_workers: Callable[[str], DataFrame] | None
    answered: Answered | None
    told: tuple[str, ...]


class ResizeError(Exception):
    """Increments are to have another size from here on: not an error, but a query can only be ended by one."""


class ScoreIncrement:
    """Scores and commits one increment after the other; what Structured Streaming calls.

    It holds values alone, but for the listener, which stays behind when Spark Connect sends it to its server.

    Attributes:
        done: What was committed `before`, and since.

    Args:
        settings: The job.
        run: Whose increments they are.
        kind: How the input is read.
        schema: Of the input.
        size: Bytes that the stream's increments are cut to; None where they are not to be cut anew.
        left: Bytes of the input that are in no increment yet.
        before: What was committed before it, as far as it tells the rate.
        listener: Is told how it goes.
        stop: Ends a provider's batches being waited for; it stays behind, too.
    """

    def __init__(
        self,
        settings: Settings,
        run: Run,
        *,
        kind: Kind,
        schema: StructType | None = None,
        size: int | None = None,
        left: int | None = None,
        before: list[Increment] | None = None,
        listener: Listener | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._settings, self._run, self._kind, self._schema = settings, run, kind, schema
        self._size, self._left, self.done = size, left, list(before or [])
        self._listener, self._stop = listener or Listener(), stop or Stop()
        self._unjudged = Committed()
        self._known: list[ReadFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_listener", "_stop")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _listener=Listener(), _stop=Stop())

    def __call__(self, frame: DataFrame, number: int) -> None:
        """Commit one increment.

        Raises:
            RuntimeError: With a line that `unpack_error` reads. What it hides is pages long, and Spark chokes on it.
        """
        try:
            self.commit(frame, number)
        except ResizeError:
            raise RuntimeError(RESIZE) from None
        except JobError as error:
            raise RuntimeError(pack_error(error)) from None
        except SPARK_ERRORS as error:
            gone = explain_vacuumed(explain(error)) if self._kind == "table" else None
            raise RuntimeError(pack_error(gone or as_job_error(error))) from None
        except OSError as error:
            raise RuntimeError(pack_error(JobError(f"increment {number} cannot be committed: {error}"))) from None

    def commit(self, frame: DataFrame, number: int, *, span: Span | None = None, size: int | None = None) -> None:
        """Score and commit one increment, unless it is committed already.

        Args:
            frame: Its rows; of files, what Spark makes of them, and not read.
            number: Its number.
            span: What it is of an Iceberg table.
            size: Bytes of the span.

        Raises:
            InputError: It cannot be read.
            DeadlineReached: Before anything of it was done.
            BusyError: Another driver has taken over; it is not committed.
            TooManyFailed: It is committed.
            ResizeError: It is committed, and the next ones are to have another size.
        """
        output = self._run.output(self._settings)
        if output.is_committed(number):
            return
        if self._run.is_late():
            raise DeadlineReached("the deadline has passed")
        self._run.claim.check()
        began, spark = time.monotonic(), frame.sparkSession
        slots = count_slots(spark)
        frame, gone = self._part(frame)
        with (
            spark_conf(spark, {"spark.sql.shuffle.partitions": str(min(slots, 200))}),
            named(spark, f"increment {number}: read"),
            self._reading(frame, output, number) as read,
            named(spark, f"increment {number}: score"),
        ):
            plan = Plan(read.counts.rows, plan_partitions(read.counts.rows, slots, self._settings))
            self._listener.begins(number, plan)
            about = {} if span is None else {"span": asdict(span), "bytes": size}
            scored = self._score(read, plan, output, number, about)
            source = self._tell_source(read, output, number)
            made = output.write(
                scored.rows,
                number,
                by_workers=scored.by_workers,
                gone=gone,
                requests=scored.answered.counts() if scored.answered else {},
                run_id=self._run.run_id,
                rows=None if self._kind == "once" else plan.rows,
                began=began,
                told=scored.told,
                **source | ({} if span is None else {"input_span": span, "input_bytes": size}),
            )
        if scored.answered:
            scored.answered.ledger.delete()
        self._listener.commits(made)
        self._go_on(made)
        if scored.answered and scored.answered.landed.spent_out:
            raise DeadlineReached(scored.answered.landed.spent_out)

    def _score(self, read: Readable, plan: Plan, output: Output, number: int, about: dict[str, Any]) -> _Scored:
        """Have the rows of an increment answered: by engines, or by a provider in batches, which is told about them."""
        deadline = self._run.deadline.timestamp() if self._run.deadline else None
        settings, told = settle_ranges(read.frame, self._settings, output, rows=plan.rows, deadline=deadline)
        rows = readable_rows(read, settings)
        answered = self._answer(rows, plan, output, number, about) if settings.is_hosted_in_batches() else None
        if answered:
            scored, by_workers = join_replies(rows, settings, plan, answered), None
        else:
            scored = score_frame(rows, settings, plan, deadline=deadline)
            by_workers = make_parts(read, settings, plan, deadline=deadline)
        return _Scored(add_malformed(scored, read, settings), by_workers, answered, (*read.told, *told))

    def _tell_source(self, read: Readable, output: Output, number: int) -> dict[str, Any]:
        """What an increment's mark says of what it was read from."""
        of_files = self._kind == "files"
        return {
            "input_files": read.counts.files,
            "input_bytes": read.counts.bytes,
            "input_offset": output.checkpoint().offset_of(number) if of_files else None,
            "input_bound": None if of_files else self._size,
            "ignored_files": read.ignored,
            "gone_files": read.gone,
            "repeated_files": read.repeated,
            "malformed_files": read.counts.malformed,
            "read": read.counts.read,
        }

    def _part(self, frame: DataFrame) -> tuple[DataFrame, DataFrame | None]:
        """What is to be scored, and the keys of rows that are there no more."""
        frame, gone = part_changes(frame, self._settings.key())
        if gone is None or not gone.limit(1).count():  # the table is looked through for the others alone
            return frame, None
        source = self._settings.input
        return frame, leave_present(gone, read_now(frame.sparkSession, source), source.key)

    def _answer(self, rows: DataFrame, plan: Plan, output: Output, number: int, about: dict[str, Any]) -> Answered:
        """Have a provider answer the rows, in batches."""
        return answer_in_batches(
            rows,
            self._settings,
            plan,
            output,
            number,
            check=lambda: check_goes_on(self._run, self._stop),
            left_s=self._run.left_s,
            tell=self._listener.flies,
            about=about,
        )

    @contextlib.contextmanager
    def _reading(self, frame: DataFrame, output: Output, number: int) -> Iterator[Readable]:
        """The increment, read through once; what Spark holds of it is let go in the end."""
        read = self._read(frame, output, number)
        try:
            yield read
        finally:
            with contextlib.suppress(*SPARK_ERRORS):
                let_go(read)

    def _read(self, frame: DataFrame, output: Output, number: int) -> Readable:
        if self._kind != "files" or self._schema is None:
            return read_frame(frame)
        if self._known is None:
            self._known = list(output.read_files().values())
        planned = output.checkpoint().files_of(number)
        # Thousands of small files take longer to open than their rows to score.
        hold = self._size is not None and self._size <= min(_HELD_BYTES, _SMALL_BYTES * len(planned))
        read = read_planned(frame.sparkSession, self._settings, self._schema, planned, self._known, hold=hold)
        self._known += read.counts.read or ()
        return read

    def _go_on(self, made: Increment) -> None:
        """Decide what becomes of the increments after this one."""
        self.done.append(made)
        self._unjudged = add_up([self._unjudged, made.counts])
        if self._unjudged.rows >= LEAST_ROWS:
            check_failed(self._unjudged, self._settings)
            self._unjudged = Committed()
        if self._left is not None:
            self._left = max(0, self._left - (made.input_bytes or 0))
        if self._size is None or self._run.is_late():
            return
        rate = bytes_per_s(take_for_full(self.done), self._run.run_id)
        if rate is None:
            return
        wanted = choose_bytes(rate, left_s=self._run.left_s(), of_table=self._kind != "files")
        if is_off(self._size, wanted=wanted, left=self._left):
            raise ResizeError


def check_goes_on(run: Run, stop: Stop) -> None:
    """Raise where a run that waits for others is to end.

    Raises:
        Interrupted: It was told to.
        BusyError: The output is another driver's by now.
    """
    stop.check("interrupted")
    run.claim.check()


def check_failed(counts: Committed, settings: Settings) -> None:
    """Raise if more rows failed than the settings allow, but for those that nobody has tried.

    Raises:
        TooManyFailed: They did; they are in the output with their errors.
    """
    limit, failed = settings.limits.max_error_rate, counts.failed - counts.untried
    if failed > limit * counts.rows:
        error = (
            f"{settings.output.prefix}error_code"
            if settings.output.layout == "flat"
            else f"{settings.output.name}.error"
        )
        raise TooManyFailed(
            f"{failed} of {counts.rows} rows failed ({failed / counts.rows:.1%}), more than limits.max_error_rate "
            f"allows ({limit:.1%}). All rows are in {settings.output.place}; look at `{error}` where outcome = 'failed'"
        )


def check_last_run(output: Output, settings: Settings) -> None:
    """Raise if the last run ended since too many rows failed: each repetition would commit one bad increment more.

    Args:
        output: Its increments; rows that a retry has mended since have not failed.
        settings: The job, whose limit counts, not that of the last run.

    Raises:
        TooManyFailed: It did, by that limit, and nobody has accepted it.
    """
    increments = output.increments()
    scored = [increment for increment in increments if not increment.is_retry]
    if not scored or not output.ended_badly(scored[-1].run_id):
        return
    last = [increment for increment in scored if increment.run_id == scored[-1].run_id]
    counts = add_up(increment.counts for increment in last)
    later = [i for i in increments if i.is_retry and i.committed_at > last[-1].committed_at]
    mended = sum(rows for i in later for code, rows in i.mended.items() if code not in UNTRIED)
    try:
        check_failed(replace(counts, failed=max(0, counts.failed - mended)), settings)
    except TooManyFailed as error:
        raise TooManyFailed(
            f"the last run: {error}. Nothing more was scored; once they are looked at, go on with --accept-failures or "
            "a higher limit"
        ) from error


def score_stream(
    spark: SparkSession,
    settings: Settings,
    run: Run,
    *,
    kind: Kind,
    schema: StructType,
    left: int | None,
    listener: Listener,
    stop: Stop,
) -> None:
    """Score what is new in the input, increment by increment.

    Args:
        spark: The session.
        settings: The job, whose output is begun.
        run: Whose increments they are.
        kind: `files` or `table`.
        schema: Of the input.
        left: Bytes that are in no increment yet; None where nothing tells.
        listener: Is told how it goes.
        stop: Ends it.

    Raises:
        JobError: Of the increment at which it ended.
    """
    output = run.output(settings)
    fixed = settings.input.increment_bytes
    sizes_itself = fixed == "auto" and not is_bounded(settings.input.options) and not settings.is_hosted_in_batches()
    sample = sample_bytes(on_gpu=has_gpu(spark), writes=isinstance(settings.spec().options, WritingOptions))
    slow_starts = 0
    while True:
        known = [i for i in output.increments() if not i.is_retry]
        rate = bytes_per_s(take_for_full(known), run.run_id)
        chosen = choose_bytes(rate, left_s=run.left_s(), of_table=kind != "files", sample=sample)
        size = _size_of(settings, chosen)
        own = [i for i in known if i.run_id == run.run_id]
        work = ScoreIncrement(
            settings,
            run,
            kind=kind,
            schema=schema,
            size=size if sizes_itself else None,
            left=None if left is None else left - sum(i.input_bytes or 0 for i in own),
            before=own,
            listener=listener,
            stop=stop,
        )
        stream = read_stream(spark, settings, schema, size)
        try:
            if not _run_query(stream, work, output.checkpoint_path, stop):
                return
        except JobError as error:
            if _SLOW_START not in str(error) or slow_starts == _SLOW_STARTS:
                raise
            slow_starts += 1


def score_once(frame: DataFrame, settings: Settings, run: Run, *, listener: Listener, stop: Stop | None = None) -> None:
    """Score an input that cannot be read increment by increment."""
    work = ScoreIncrement(settings, run, kind="once", listener=listener, stop=stop)
    with _told(0):
        work.commit(explode_variants(frame, settings), 0)


def score_spans(
    spark: SparkSession, settings: Settings, run: Run, lineage: list[Snapshot], *, listener: Listener, stop: Stop
) -> None:
    """Score what is new in an Iceberg table.

    Args:
        spark: The session.
        settings: The job, whose output is begun.
        run: Whose increments they are.
        lineage: The table's snapshots.
        listener: Is told how it goes.
        stop: Ends it.

    Raises:
        OutputError: What is committed does not tell up to where.
        JobError: Of the increment at which it ended.
    """
    source = settings.input
    before = [increment for increment in run.output(settings).increments() if not increment.is_retry]
    if before and before[-1].input_span is None:
        raise OutputError(
            f"{settings.output.called} was written by a gristmill that read Iceberg as a stream; start "
            "afresh with --overwrite"
        )
    work = ScoreIncrement(settings, run, kind="iceberg", before=before, listener=listener, stop=stop)
    while not stop.is_set():
        run.claim.check()
        chosen = choose_bytes(bytes_per_s(work.done, run.run_id), left_s=run.left_s())
        size = _size_of(settings, chosen)
        last = work.done[-1].input_span if work.done else None
        found = asked_span(run.output(settings), len(work.done)) or next_span(
            lineage, last, source, size=size, key=source.key or settings.input_columns()
        )
        if found is None:
            return
        (span, held), number = found, len(work.done)
        with _told(number):
            work.commit(select_needed(read_span(spark, source, span), settings), number, span=span, size=held)
        if len(work.done) == number:
            raise BusyError(f"increment {number} of {settings.output.called} was committed by another driver")


def _size_of(settings: Settings, chosen: int) -> int:
    """Bytes of an increment: those of the settings, or what was chosen; a provider's batches are no matter of time."""
    fixed = settings.input.increment_bytes
    if fixed != "auto":
        return int(fixed)
    return BATCHED_BYTES if settings.is_hosted_in_batches() else chosen


@contextlib.contextmanager
def _told(number: int) -> Iterator[None]:
    try:
        yield
    except SPARK_ERRORS as error:
        raise explain_change(explain(error)) or as_job_error(error) from error
    except OSError as error:
        raise JobError(f"increment {number} cannot be committed: {error}") from error


def _run_query(stream: DataFrame, work: ScoreIncrement, checkpoint: str, stop: Stop) -> bool:
    """Run one query until nothing new is left; True if it is to be started again, for increments of another size."""
    writer = stream.writeStream.trigger(availableNow=True).option("checkpointLocation", checkpoint)
    try:
        with spark_conf(stream.sparkSession, {"spark.sql.streaming.stopTimeout": _STOP}):
            query = writer.foreachBatch(work).start()
            while not query.awaitTermination(_POLL_S):
                if stop.is_cancelled():
                    query.stop()
    except SPARK_ERRORS as error:
        if RESIZE in str(error):
            return True
        told = explain(error)
        raise unpack_error(str(error)) or explain_change(told) or as_job_error(error) from error
    return False
