"""A run of a command on an output: begun, carried out whatever its work is, and reported however it ends."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from jobs.deadlines import deadline_at
from jobs.errors import DeadlineReached, Interrupted, JobError, SparkGone, TooManyFailed
from jobs.increments.comparing import Comparison, compare
from jobs.increments.scoring import Run
from jobs.input.checkpoint import path_of
from jobs.input.files import name_some, tell_malformed
from jobs.layout import partition_types
from jobs.output.committed import Increment, add_up
from jobs.output.directory import Output
from jobs.preflight import check_client, check_model, show_warning, tell_ignored_settings
from jobs.serving import list_specs
from jobs.settings import Settings
from jobs.spark.engines import start_beside_spark, start_engines
from jobs.spark.interrupts import Stop
from jobs.spark.loss import telling_of_loss
from jobs.spark.session import is_local, keep_noise, many_files, open_session, spark_conf
from jobs.telling.engines import EngineLook
from jobs.telling.live import LiveRun, Outlet, begin_live
from jobs.telling.report import Command, RunReport, Status, make_report
from jobs.telling.result import ResultFile
from udfs.model.sending import send_models

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Start:
    """A run before there is a session.

    Args:
        command: What was called.
        settings: What is asked; its model is looked at, and pinned.
        run: This run.
        output: Where to; it is not this driver's yet.
        console: Where progress and warnings are shown.
        stop: Ends the run from outside.
        result: Told how it goes.
        warnings: For the report; they have been shown.
        outlets: Are shown how the run stands.
        engines: Looks at engines, from before the run has any.
    """

    command: Command
    settings: Settings
    run: Run
    output: Output
    console: Console
    stop: Stop
    result: ResultFile
    warnings: tuple[str, ...] = ()
    outlets: tuple[Outlet, ...] = ()
    engines: EngineLook = field(default_factory=EngineLook)

    def report_nothing(self, warnings: Sequence[str]) -> RunReport:
        """Show warnings, and keep the report of a run that had nothing to do."""
        for warning in warnings:
            show_warning(self.console, warning)
        report = make_report(
            self.settings,
            [],
            run_id=self.run.run_id,
            started_at=self.run.started_at,
            status="completed",
            command=self.command,
            warnings=[*self.warnings, *warnings],
        )
        self.result.keep(report, self.output.write_report(self.run.run_id, report.as_dict()))
        for outlet in self.outlets:
            outlet.show(replace(begin_live(self.settings, self.run, self.command), status="completed"))
        return report


class Job:
    """A run whose output is its own.

    Attributes:
        live: Looks after the work while it is carried out.

    Args:
        start: How it began.
        spark: The session.
        run: This run, with its claim on the output.
    """

    live: LiveRun

    def __init__(self, start: Start, spark: SparkSession, run: Run) -> None:
        self.settings, self.spark, self.run, self.output = start.settings, spark, run, start.output
        self.console, self.stop, self.result = start.console, start.stop, start.result
        self._start, self._warnings = start, [*start.warnings]

    def carry_out(self, work: Callable[[], None], *, left: Callable[[], dict[str, int]] = dict) -> RunReport:
        """Do the work, looked after meanwhile, and keep a report.

        Args:
            work: Commits increments, and tells `live` of them; a `JobError` of it says how it ended.
            left: Counts what is left of the input.

        Raises:
            JobError: What ended it before its time, but for the deadline and a model that fails too often.
        """
        self.live = self._look_after()
        with self.live:
            status, error = self._do(work)
            self.live.ends(status)
        compared = self._compare() if status == "completed" and error is None else None
        report = self._report(status, error, {} if isinstance(error, SparkGone) else left(), compared)
        self.result.keep(report, None)
        if error is None or isinstance(error, DeadlineReached | TooManyFailed):
            self.result.keep(report, self.output.write_report(self.run.run_id, report.as_dict()))
            return report
        with contextlib.suppress(JobError):  # a full disk has no room for a report either
            self.result.keep(report, self.output.write_report(self.run.run_id, report.as_dict()))
        raise error

    def _look_after(self) -> LiveRun:
        output = self.run.output(self.settings)
        start = self._start
        return LiveRun(
            self.spark,
            self.settings,
            self.run,
            output,
            command=start.command,
            outlets=start.outlets,
            engines=start.engines,
        )

    def begin(self, frame: DataFrame | None = None, *, keep: bool = False, overwrite: bool = False) -> None:
        """Make the output this job's; see `Output.begin`.

        Args:
            frame: The input, where more of it is to be scored.
            keep: Later runs read it by its schema of today.
            overwrite: Start afresh.
        """
        partitions = partition_types(frame.schema, self.settings) if frame is not None else None
        schema = frame.schema if frame is not None and keep else None
        self.output.begin(schema, spark=self.spark, partitions=partitions, overwrite=overwrite)
        self.run = replace(self.run, home=self.output.home)

    def increments(self) -> list[Increment]:
        """What this run has committed."""
        return [increment for increment in self.output.increments() if increment.run_id == self.run.run_id]

    def say(self, line: str) -> None:
        self.console.print(escape(line), style="dim", soft_wrap=True)

    def warn(self, warning: str) -> None:
        """Show a warning, and keep it for the report."""
        self._warnings.append(warning)
        show_warning(self.console, warning)

    def _do(self, work: Callable[[], None]) -> tuple[Status, JobError | None]:
        try:
            with telling_of_loss():
                work()
            self.stop.check("interrupted")
            self.output.settle_last(self.spark)
        except DeadlineReached as error:
            return "expired", error
        except JobError as error:
            if self.stop.is_set():
                return "interrupted", Interrupted(f"interrupted; {self._what_stays()}", by=self.stop.by)
            if isinstance(error, SparkGone):
                return "failed", SparkGone(self._what_stays())
            told = self.run.claim.fault() or error  # one that has lost its output was cancelled
            return "failed", type(told)(f"{told}; {self._what_stays()}") if type(told) is JobError else told
        return ("expired" if _count_expired(self.increments()) else "completed"), None

    def _what_stays(self) -> str:
        own = self.increments()
        if not own:
            return "nothing of this run was committed; the same command goes on where the last one ended"
        rows = sum(increment.counts.rows for increment in own)
        committed = "1 increment" if len(own) == 1 else f"{len(own)} increments"
        return f"committed: {committed} with {rows:,} rows; the same command goes on from there"

    def _compare(self) -> Comparison | None:
        """What the batch has saved; whatever keeps it from being measured is no matter of the run's."""
        with contextlib.suppress(Exception):
            if not self.stop.is_set():
                left_s = self.run.left_s()
                return compare(self.spark, self.settings, self.increments(), self.run.run_id, left_s=left_s)
        return None

    def _report(
        self, status: Status, error: JobError | None, left: dict[str, int], compared: Comparison | None
    ) -> RunReport:
        own = self.increments()
        expired = _count_expired(own)
        malformed = {uri: rows for increment in own for uri, rows in increment.malformed_files.items()}
        for warning in dict.fromkeys([*(line for i in own for line in i.told), *tell_malformed(malformed)]):
            self.warn(warning)
        report = make_report(
            self.settings,
            own,
            run_id=self.run.run_id,
            started_at=self.run.started_at,
            status=status,
            command=self._start.command,
            left=({"expired_rows": expired} if expired else {}) | left,
            warnings=self._warnings,
            compared=compared,
            error=str(error) if error else None,
            too_many_failed=isinstance(error, TooManyFailed),
        )
        if report.ignored_files:
            ignored = name_some([path_of(uri) for uri in report.ignored_files])
            show_warning(self.console, f"not readable, and left out: {ignored}")
        if report.gone_files:
            gone = name_some([path_of(uri) for uri in report.gone_files])
            show_warning(self.console, f"gone before they were scored, and left out: {gone}")
        if report.repeated_files:
            same = [f"{path_of(uri)} (as {path_of(before)})" for uri, before in report.repeated_files.items()]
            then = "and left out" if self.settings.input.dedupe_files else "and scored all the same; if they were moved"
            advice = "" if self.settings.input.dedupe_files else ", set input.dedupe_files to leave such files out"
            show_warning(self.console, f"with the rows of another file, {then}{advice}: {name_some(same)}")
        return report


def start_run(
    command: Command,
    settings: Settings,
    *,
    console: Console | None = None,
    stop: Stop | None = None,
    result: ResultFile | None = None,
    outlets: Sequence[Outlet] = (),
) -> Start:
    """A run that begins now: its model is looked at, and what is wrong with the settings is said.

    Raises:
        UserError, ModelError, SpecError: The model or the output cannot be had.
    """
    console, stop, result = console or Console(file=sys.stderr), stop or Stop(), result or ResultFile()
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    run = Run(run_id, started_at, deadline_at(settings.limits.deadline, started_at))
    result.run(run_id)
    console.print(f"run {run_id}", style="dim", highlight=False)
    settings = check_model(settings)
    endpoint = settings.endpoint()
    if endpoint is not None and (endpoint.in_batches or is_local(settings.spark)):  # else executors have both
        check_client(endpoint)
    warnings = tell_ignored_settings(settings)
    for warning in warnings:  # at once, since Spark takes its time
        show_warning(console, warning)
    return Start(
        command, settings, run, Output(settings), console, stop, result, tuple(warnings), outlets=tuple(outlets)
    )


@contextlib.contextmanager
def open_job(start: Start, *, overwrite: bool = False, spark_log: str | None = None) -> Iterator[Job]:
    """A session, and a run on an output that is this driver's while the body runs; engines start meanwhile.

    Raises:
        The errors of `jobs.run.score` that come before anything is written.
    """
    settings, output, stop = start.settings, start.output, start.stop
    with contextlib.ExitStack() as stack:
        stack.enter_context(telling_of_loss("run the same command again"))
        with start_beside_spark(settings):
            spark = open_session(settings.spark, spark_log=spark_log)
        stack.enter_context(keep_noise())
        stop.check("interrupted; nothing was written")
        stack.enter_context(spark_conf(spark, many_files(spark)))
        claim = stack.enter_context(output.lock(on_lost=stop.cancel))
        output.check(spark, overwrite=overwrite)
        for spec in list_specs(settings):
            send_models(spark, spec)
        start_engines(spark, settings)
        yield Job(start, spark, replace(start.run, claim=claim))


def _count_expired(increments: list[Increment]) -> int:
    return add_up(increment.counts for increment in increments).failed_by_code.get("expired", 0)


def check_report(report: RunReport, settings: Settings) -> None:
    """Raise if a run ended before its time.

    Raises:
        TooManyFailed: More rows failed than the settings allow.
        DeadlineReached: The deadline left something over.
    """
    if report.status == "failed":
        raise TooManyFailed(report.error or "too many rows failed")
    if report.status == "expired":
        why = _why_expired(report, settings)
        left = [f"{value:,} {name.replace('_', ' ')}" for name, value in report.left.items()]
        advice = f"`gristmill retry CONF --only expired` scores the rows that expired in {settings.output.place}"
        raise DeadlineReached(
            f"{why}; {'left: ' if left else 'what is left is not counted'}{', '.join(left)}. "
            "The same command goes on from there" + (f"; {advice}" if report.left.get("expired_rows") else "")
        )


def _why_expired(report: RunReport, settings: Settings) -> str:
    """What came first: the deadline, a limit on money, or the end of a provider's batch."""
    if report.error and "limits." in report.error:
        return report.error
    own = settings.limits.deadline is None and settings.is_hosted_in_batches()
    return "the provider's batches ended before all was answered" if own else "the deadline came first"
