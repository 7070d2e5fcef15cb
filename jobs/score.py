"""Score a table: settings, read what is new, score and commit it increment by increment, report.

gristmill score conf/catalog_tagging.yaml
spark-submit jobs/score.py conf/catalog_tagging.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # spark-submit put jobs/ first on the path, where its parent belongs
    _ROOT = Path(__file__).resolve().parents[1]
    if (_ROOT / "jobs" / "score.py").is_file():
        sys.path[0] = str(_ROOT)

from rich.console import Console

from jobs.changes import tell_skipped
from jobs.committed import add_up
from jobs.errors import DeadlineReached, OutputError, TooManyFailed
from jobs.iceberg import read_lineage
from jobs.increments import check_failed, score_once, score_spans, score_stream
from jobs.interrupts import Stop
from jobs.job import Job, open_job
from jobs.outlook import Outlook
from jobs.output import Output
from jobs.progress import ProgressBar
from jobs.report import RunReport
from jobs.retry import publish_retries, retry_all
from jobs.settings import Settings
from jobs.sources import Kind, find_kind, read_input
from jobs.unscored import Unscored

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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
    with open_job("score", settings, overwrite=overwrite, spark_log=spark_log, console=console, stop=stop) as job:
        settings, output = job.settings, job.output
        frame = read_input(job.spark, settings, None if overwrite else output.schema())
        kind = find_kind(job.spark, settings.input)
        if not overwrite:
            output.check_input(frame, kind)
        output.begin(frame.schema if kind == "files" else None, overwrite=overwrite)
        publish_retries(job.spark, settings, job.run)
        unscored = Unscored(settings, output, kind, frame)
        for warning in (*tell_skipped(settings.input.options), *unscored.warnings()):
            job.warn(warning)
        return job.carry_out(lambda: _score_new(job, kind, frame, unscored), left=unscored.as_counts)


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
    if not Output(settings).is_begun():
        raise OutputError(f"output.path {settings.output.path} holds no results yet; `gristmill score` comes first")
    with open_job("retry", settings, spark_log=spark_log, console=console, stop=stop) as job:
        job.output.begin()
        publish_retries(job.spark, settings, job.run)
        return job.carry_out(lambda: _retry_failed(job, only, again=again))


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


def _score_new(job: Job, kind: Kind, frame: DataFrame, unscored: Unscored) -> None:
    """Score what is in no increment yet."""
    settings, spark, run, stop = job.settings, job.spark, job.run, job.stop
    outlook = _look_ahead(job, unscored)
    with ProgressBar(spark, job.console, told=outlook.go_on) as bar:
        if kind == "once":
            score_once(frame, settings, run, listener=bar)
        elif kind == "iceberg":
            score_spans(spark, settings, run, read_lineage(spark, settings.input), listener=bar, stop=stop)
        else:
            left = outlook.left_bytes
            score_stream(spark, settings, run, kind=kind, schema=frame.schema, left=left, listener=bar, stop=stop)
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
        warn=job.warn,
    )


def _retry_failed(job: Job, only: Sequence[str], *, again: bool) -> None:
    """Score what failed before."""
    with ProgressBar(job.spark, job.console) as bar:
        retry_all(job.spark, job.settings, job.run, only=only, again=again, warn=job.warn, listener=bar, stop=job.stop)


if __name__ == "__main__":
    from jobs.cli import main

    main(["score", *sys.argv[1:]])
