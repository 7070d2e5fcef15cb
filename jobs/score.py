"""Score a table: settings, read what is new, score and commit it increment by increment, report.

gristmill score conf/catalog_tagging.yaml
spark-submit jobs/score.py conf/catalog_tagging.yaml
"""

from __future__ import annotations

import contextlib
import functools
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # spark-submit put jobs/ first on the path, where its parent belongs
    _ROOT = Path(__file__).resolve().parents[1]
    if (_ROOT / "jobs" / "score.py").is_file():
        sys.path[0] = str(_ROOT)

from rich.console import Console
from rich.markup import escape

from jobs.changes import tell_skipped
from jobs.checkpoint import path_of
from jobs.committed import Increment, add_up
from jobs.deadlines import deadline_at
from jobs.engines import start_beside_spark, start_engines
from jobs.errors import DeadlineReached, Interrupted, JobError, OutputError, TooManyFailed
from jobs.iceberg import read_lineage
from jobs.increments import Run, check_failed, score_once, score_spans, score_stream
from jobs.input_files import name_some
from jobs.interrupts import Stop, cancel_all
from jobs.outlook import Outlook
from jobs.output import Output
from jobs.progress import Listener, ProgressBar
from jobs.report import RunReport, Status, make_report
from jobs.retry import publish_retries, retry_all
from jobs.session import open_session
from jobs.settings import Settings
from jobs.sources import Kind, find_kind, read_input
from jobs.unscored import Unscored
from udfs.generation.own_settings import tell_ignored
from udfs.models import open_model
from udfs.tasks import make_task

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def score(
    settings: Settings,
    *,
    overwrite: bool = False,
    spark_log: str | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
) -> RunReport:
    """Score what is new in a table and write the answers.

    Args:
        settings: The job.
        overwrite: Start afresh in an output directory that holds a gristmill job's results.
        spark_log: Level of Spark's log on the terminal; None keeps it in a file.
        console: Where progress and warnings are shown.
        stop: Ends the run from outside.

    Returns:
        The run's report, which is kept with the output too. Its status is `failed` where more rows failed than
        `limits.max_error_rate` allows, and `expired` where the deadline left something over; `check_report` raises.

    Raises:
        UserError: Something is wrong with the settings, the input, the output or Java.
        ModelError: Something is wrong with the model; nothing was written.
        Interrupted: The run was told to end.
        JobError: Spark gave up. Here as above, what was committed before stays, and the next run goes on from there.
    """
    console, stop, output = console or Console(stderr=True), stop or Stop(), Output(settings)
    with _begin(settings, output, stop, overwrite=overwrite, spark_log=spark_log) as (spark, run):
        schema = None if overwrite else output.schema()
        frame = read_input(spark, settings, schema)
        kind = find_kind(spark, settings.input)
        if not overwrite:
            output.check_input(frame, kind)
        output.begin(frame.schema if kind == "files" else None, overwrite=overwrite)
        publish_retries(spark, settings, run)
        job = Job(spark, settings, run, kind, output, frame, console)
        return job.carry_out(stop)


def retry(
    settings: Settings,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    spark_log: str | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
) -> RunReport:
    """Score failed rows again and append those that succeed.

    Args:
        settings: The job, as it was scored.
        only: Error codes; none for all.
        again: Rows too that a retry has failed on before.
        spark_log, console, stop: As `score`.

    Raises:
        The same errors as `score`.
    """
    console, stop, output = console or Console(stderr=True), stop or Stop(), Output(settings)
    if not output.is_begun():
        raise OutputError(f"output.path {output.path} holds no results yet; `gristmill score` comes first")
    with _begin(settings, output, stop, spark_log=spark_log) as (spark, run):
        output.begin()
        publish_retries(spark, settings, run)
        warnings = list[str]()

        def warn(warning: str) -> None:
            warnings.append(warning)
            show_warning(console, warning)

        for warning in tell_ignored_settings(settings):
            warn(warning)
        report_on = functools.partial(_report_retry, settings, output, run, warnings)
        try:
            with ProgressBar(spark, console) as bar:
                retry_all(spark, settings, run, only=only, again=again, warn=warn, listener=bar, stop=stop)
            stop.check("interrupted; what was retried before is committed")
        except DeadlineReached:
            return report_on("expired")
        except JobError as error:
            interrupted = Interrupted(f"interrupted: {error}", by=stop.by) if stop.is_set() else None
            told = interrupted or run.claim.fault() or error
            with contextlib.suppress(JobError):
                report_on("interrupted" if interrupted else "failed", error=str(told))
            raise told from error
        return report_on("completed")


@contextlib.contextmanager
def _begin(
    settings: Settings, output: Output, stop: Stop, *, overwrite: bool = False, spark_log: str | None = None
) -> Iterator[tuple[SparkSession, Run]]:
    """A session, and a run on an output that is this driver's while the body runs; engines start meanwhile."""
    run = start_run(settings)
    check_model(settings)
    with start_beside_spark(settings):
        spark = open_session(settings.spark, spark_log=spark_log)
    stop.check("interrupted; nothing was written")
    with output.lock(on_lost=cancel_all) as claim:
        output.check(spark, overwrite=overwrite)
        start_engines(spark, settings)
        yield spark, replace(run, claim=claim)


def _report_retry(
    settings: Settings, output: Output, run: Run, warnings: list[str], status: Status, *, error: str | None = None
) -> RunReport:
    own = [increment for increment in output.increments() if increment.run_id == run.run_id]
    left = _expired_in(own)
    report = make_report(
        settings,
        own,
        run_id=run.run_id,
        started_at=run.started_at,
        status="expired" if left and status == "completed" else status,
        command="retry",
        left=left,
        warnings=warnings,
        error=error,
    )
    output.write_report(run.run_id, report.as_dict())
    return report


def _expired_in(increments: Sequence[Increment]) -> dict[str, int]:
    expired = sum(increment.counts.failed_by_code.get("expired", 0) for increment in increments)
    return {"expired_rows": expired} if expired else {}


class Job:
    """A run whose input and output are in order: score, and report however it ends.

    Args:
        spark: The session.
        settings: What is asked.
        run: This run.
        kind: How the input is read.
        output: Locked and begun.
        frame: The whole input.
        console: Where progress and warnings are shown.
    """

    def __init__(
        self,
        spark: SparkSession,
        settings: Settings,
        run: Run,
        kind: Kind,
        output: Output,
        frame: DataFrame,
        console: Console,
    ) -> None:
        self._spark, self._settings, self._run, self._kind = spark, settings, run, kind
        self._output, self._frame, self._console = output, frame, console
        self._unscored = Unscored(settings, output, kind, frame)
        self._warnings: list[str] = []

    def carry_out(self, stop: Stop) -> RunReport:
        """Score, and keep a report.

        Raises:
            JobError: What ended it before its time, but for the deadline and a model that fails too often.
        """
        for warning in (
            *tell_ignored_settings(self._settings),
            *tell_skipped(self._settings.input.options),
            *self._unscored.warnings(),
        ):
            self._warn(warning)
        status, error = self._score(stop)
        report = self._report(status, error)
        if isinstance(error, JobError) and status != "expired" and not isinstance(error, TooManyFailed):
            with contextlib.suppress(JobError):  # a full disk has no room for a report either
                self._output.write_report(self._run.run_id, report.as_dict())
            raise error
        self._output.write_report(self._run.run_id, report.as_dict())
        return report

    def _score(self, stop: Stop) -> tuple[Status, JobError | None]:
        try:
            outlook = self._look_ahead()
            with ProgressBar(self._spark, self._console, told=outlook.go_on) as bar:
                if self._kind == "once":
                    score_once(self._frame, self._settings, self._run, listener=bar)
                elif self._kind == "iceberg":
                    lineage = read_lineage(self._spark, self._settings.input)
                    score_spans(self._spark, self._settings, self._run, lineage, listener=bar, stop=stop)
                else:
                    self._score_stream(bar, stop, outlook.left_bytes)
            stop.check("interrupted")
            counts = add_up(increment.counts for increment in self._own())
            check_failed(counts, self._settings)
        except DeadlineReached as error:
            return "expired", error
        except JobError as error:
            if stop.is_set():
                return "interrupted", Interrupted(f"interrupted; {self._what_stays()}", by=stop.by)
            told = self._run.claim.fault() or error  # one that has lost its output was cancelled
            return "failed", type(told)(f"{told}; {self._what_stays()}") if type(told) is JobError else told
        return ("expired" if counts.failed_by_code.get("expired") else "completed"), None

    def _score_stream(self, bar: Listener, stop: Stop, left_bytes: int | None) -> None:
        score_stream(
            self._spark,
            self._settings,
            self._run,
            kind=self._kind,
            schema=self._frame.schema,
            left=left_bytes,
            listener=bar,
            stop=stop,
        )

    def _look_ahead(self) -> Outlook:
        if self._run.deadline is not None:
            self._unscored.count()
        known = [increment for increment in self._output.increments() if not increment.is_retry]
        return Outlook(
            self._run.run_id,
            self._run.deadline,
            known,
            files=self._unscored.files if self._unscored.is_of_files else None,
            rows=self._unscored.rows(),
            say=self._say,
            warn=self._warn,
        )

    def _own(self) -> list[Increment]:
        return [increment for increment in self._output.increments() if increment.run_id == self._run.run_id]

    def _what_stays(self) -> str:
        own = self._own()
        if not own:
            return "nothing of this run was committed; the same command goes on where the last one ended"
        rows = sum(increment.counts.rows for increment in own)
        return f"{len(own)} increments with {rows:,} rows are committed; the same command goes on from there"

    def _report(self, status: Status, error: JobError | None) -> RunReport:
        own = self._own()
        report = make_report(
            self._settings,
            own,
            run_id=self._run.run_id,
            started_at=self._run.started_at,
            status=status,
            left=_expired_in(own) | self._unscored.as_counts(),
            warnings=self._warnings,
            error=str(error) if error else None,
        )
        if report.ignored_files:
            ignored = name_some([path_of(uri) for uri in report.ignored_files])
            self._show_warning(f"not readable, and left out: {ignored}")
        if report.gone_files:
            gone = name_some([path_of(uri) for uri in report.gone_files])
            self._show_warning(f"gone before they were scored, and left out: {gone}")
        return report

    def _say(self, line: str) -> None:
        self._console.print(escape(line), style="dim", soft_wrap=True)

    def _warn(self, warning: str) -> None:
        """Show a warning, and keep it for the report."""
        self._warnings.append(warning)
        self._show_warning(warning)

    def _show_warning(self, warning: str) -> None:
        show_warning(self._console, warning)


def show_warning(console: Console, warning: str) -> None:
    console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)


def start_run(settings: Settings) -> Run:
    """A run that begins now."""
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    return Run(run_id, started_at, deadline_at(settings.limits.deadline, started_at))


def check_model(settings: Settings) -> None:
    """Look at the model before Spark starts: there, safe, of the task's kind, with room for chunks where texts are cut.

    Raises:
        ModelError, SpecError: It is not.
    """
    spec = settings.spec()
    task = make_task(spec, open_model(spec.model, spec.revision))
    if spec.overflow == "chunk":
        task.tokenize([])


def tell_ignored_settings(settings: Settings) -> list[str]:
    """Warns of what the model's own generation settings ask for in vain."""
    spec = settings.spec()
    told = tell_ignored(open_model(spec.model, spec.revision), spec)
    return [told] if told else []


def check_report(report: RunReport, settings: Settings) -> None:
    """Raise if a run ended before its time.

    Raises:
        TooManyFailed: More rows failed than the settings allow.
        DeadlineReached: The deadline left something over.
    """
    if report.status == "failed":
        raise TooManyFailed(report.error or "too many rows failed")
    if report.status == "expired":
        left = [f"{value:,} {name.replace('_', ' ')}" for name, value in report.left.items()]
        advice = f"`gristmill retry CONF --only expired` scores the rows that expired in {settings.output.path}"
        raise DeadlineReached(
            f"the deadline came first; {'left: ' if left else 'what is left is not counted'}{', '.join(left)}. "
            "The same command goes on from there" + (f"; {advice}" if report.left.get("expired_rows") else "")
        )


if __name__ == "__main__":
    from jobs.cli import main

    main(["score", *sys.argv[1:]])
