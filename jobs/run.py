"""The two runs: score what is new in a table, and score again what failed.

Settings, read what is new, score and commit it increment by increment, report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from jobs.batch_files.lines import lay_out
from jobs.batch_files.results import has_results, write_results
from jobs.errors import OutputError, SettingsError
from jobs.hiding import hiding
from jobs.increments.batches import cancel_batches, check_none_flies, forget_committed
from jobs.increments.listener import Listeners
from jobs.increments.outlook import Outlook
from jobs.increments.retrying import publish_retries, retry_all
from jobs.increments.scoring import check_failed, check_last_run, score_once, score_spans, score_stream
from jobs.increments.unscored import Unscored
from jobs.input.drift import tell_drift
from jobs.input.iceberg import read_lineage
from jobs.input.sources import Kind, find_kind, read_input
from jobs.job import Job, open_job, start_run
from jobs.output.committed import add_up
from jobs.output.directory import Output
from jobs.settings import BATCH_FORMATS, Settings
from jobs.spark.interrupts import Stop
from jobs.telling.live import Outlet
from jobs.telling.progress import ProgressBar
from jobs.telling.report import RunReport
from jobs.telling.result import ResultFile
from jobs.unchanged import LastLook

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def score(
    settings: Settings,
    *,
    overwrite: bool = False,
    accept_failures: bool = False,
    spark_log: str | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    result: ResultFile | None = None,
    outlets: Sequence[Outlet] = (),
) -> RunReport:
    """Score what is new in a table and write the answers.

    Args:
        settings: The job.
        overwrite: Start afresh in an output directory that holds a gristmill job's results.
        accept_failures: Go on where the last run ended since too many rows failed.
        spark_log: Level of Spark's log on the terminal; None keeps it in a file.
        console: Where progress and warnings are shown.
        stop: Ends the run from outside.
        result: Told how the run goes.
        outlets: Are shown how the run stands, every few seconds; see `jobs.telling.outlets`.

    Returns:
        The run's report, which is kept with the output too. Its status is `failed` where more rows failed than
        `limits.max_error_rate` allows, and `expired` where the deadline left something over; `check_report` raises.

    Raises:
        UserError: Something is wrong with the settings, the input, the output or Java.
        ModelError: Something is wrong with the model; nothing was written.
        Interrupted: The run was told to end.
        TooManyFailed: They did in the last run, and nobody has accepted it; nothing was scored.
        JobError: Spark gave up. Here as above, what was committed before stays, and the next run goes on from there.
    """
    asked, settings = settings, lay_out(settings, overwrite=overwrite)
    with hiding(settings):
        start = start_run("score", settings, console=console, stop=stop, result=result, outlets=outlets)
        look = LastLook(start.settings, start.output)
        if not (overwrite or accept_failures) and has_results(asked) and (told := look.find_warnings()) is not None:
            return start.report_nothing(told)
        with open_job(start, overwrite=overwrite, spark_log=spark_log) as job:
            return _score(job, asked, look, overwrite=overwrite, accept_failures=accept_failures)


def _score(job: Job, asked: Settings, look: LastLook, *, overwrite: bool, accept_failures: bool) -> RunReport:
    settings, output = job.settings, job.output
    schema = None if overwrite else output.schema()
    frame = read_input(job.spark, settings, schema)
    kind = find_kind(job.spark, settings.input)
    if not overwrite:
        output.check_input(frame, kind)
    if overwrite:
        check_none_flies(output)
    output.prepare(frame, overwrite=overwrite)
    job.begin(frame, keep=kind == "files", overwrite=overwrite)
    publish_retries(job.spark, settings, job.run)
    forget_committed(output)
    if accept_failures:
        output.accept_failures()
    check_last_run(output, settings)
    unscored = Unscored(settings, output, kind, frame)
    for warning in unscored.warnings():
        job.warn(warning)
    if kind == "files":
        for warning in tell_drift(job.spark, settings, frame, unscored.files(), is_first=schema is None):
            job.warn(warning)
    report = job.carry_out(lambda: _score_new(job, kind, frame, unscored), left=unscored.as_counts)
    _write_lines(job, asked)
    if unscored.input_files and not settings.output.is_table and report.status == "completed" and not report.left:
        look.keep(unscored.input_files, unscored.warnings())
    return report


def retry(
    settings: Settings,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    spark_log: str | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    result: ResultFile | None = None,
    outlets: Sequence[Outlet] = (),
) -> RunReport:
    """Score failed rows again and append those that succeed.

    Args:
        settings: The job, as it was scored.
        only: Error codes; none for all.
        again: Rows too that a retry has failed on before.
        spark_log, console, stop, result, outlets: As `score`.

    Raises:
        The same errors as `score`.
    """
    asked, settings = settings, lay_out(settings)
    if not Output(settings).is_begun():
        raise OutputError(f"{settings.output.called} holds no results yet; `gristmill score` comes first")
    with (
        hiding(settings),
        open_job(
            start_run("retry", settings, console=console, stop=stop, result=result, outlets=outlets),
            spark_log=spark_log,
        ) as job,
    ):
        job.begin()
        publish_retries(job.spark, settings, job.run)
        forget_committed(job.output)
        report = job.carry_out(lambda: _retry_failed(job, only, again=again))
        _write_lines(job, asked)
        return report


def cancel(settings: Settings, *, console: Console | None = None) -> None:
    """Cancel the batches that a job has in flight at a provider, and say which.

    Args:
        settings: The job; another run of it must have ended.
        console: Where it is said.

    Raises:
        UserError: The output has no results yet, another driver works in it, or the provider cannot be asked.
    """
    console, output = console or Console(file=sys.stderr), Output(settings)
    if not settings.is_hosted_in_batches():
        raise SettingsError("--cancel is for score.engine openai-batch and anthropic-batch")
    if not output.is_begun():
        raise OutputError(f"{settings.output.called} holds no results yet; nothing is in flight")
    with hiding(settings), output.lock():
        told = cancel_batches(output, settings)
    for line in told or ["nothing is in flight"]:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _write_lines(job: Job, asked: Settings) -> None:
    """The results file of a job that was asked for one."""
    if asked.output.format in BATCH_FORMATS and job.output.increments():
        started_at = job.run.started_at.timestamp()
        counts = write_results(job.spark, asked, job.settings, started_at=started_at)
        told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.by_kind.items()))
        job.say(f"{sum(counts.by_kind.values()):,} lines in {asked.output.path}: {told}")


def _score_new(job: Job, kind: Kind, frame: DataFrame, unscored: Unscored) -> None:
    """Score what is in no increment yet."""
    settings, spark, run, stop = job.settings, job.spark, job.run, job.stop
    if unscored.is_of_files and not unscored.files():
        return  # no query has to be started to find that out
    outlook = _look_ahead(job, unscored)
    job.live.expects(left := outlook.left_bytes)
    with ProgressBar(spark, job.console, told=outlook.go_on) as bar:
        told = Listeners(bar, job.live)
        if kind == "once":
            score_once(frame, settings, run, listener=told, stop=stop)
        elif kind == "iceberg":
            score_spans(spark, settings, run, read_lineage(spark, settings.input), listener=told, stop=stop)
        else:
            score_stream(spark, settings, run, kind=kind, schema=frame.schema, left=left, listener=told, stop=stop)
    check_failed(add_up(increment.counts for increment in job.increments()), settings)


def _look_ahead(job: Job, unscored: Unscored) -> Outlook:
    if job.run.deadline is not None:
        unscored.count()
    return Outlook(
        job.run.run_id,
        job.run.deadline,
        [increment for increment in job.output.increments() if not increment.is_retry],
        files=unscored.files if unscored.is_of_files else None,
        rows=unscored.rows(),
        say=job.say,
        warn=(lambda _: None) if job.settings.is_hosted_in_batches() else job.warn,  # no file is too large for these
    )


def _retry_failed(job: Job, only: Sequence[str], *, again: bool) -> None:
    """Score what failed before."""
    with ProgressBar(job.spark, job.console) as bar:
        told = Listeners(bar, job.live)
        retry_all(job.spark, job.settings, job.run, only=only, again=again, warn=job.warn, listener=told, stop=job.stop)
