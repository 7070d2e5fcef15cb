"""Score a table: settings, read, plan, score and write, report.

gristmill score conf/catalog_tagging.yaml
spark-submit jobs/score.py conf/catalog_tagging.yaml
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

if __name__ == "__main__":  # spark-submit put jobs/ first on the path, where its parent belongs
    _ROOT = Path(__file__).resolve().parents[1]
    if (_ROOT / "jobs" / "score.py").is_file():
        sys.path[0] = str(_ROOT)

from rich.console import Console

from jobs.errors import SPARK_ERRORS, JobError, TooManyFailed, explain
from jobs.output import Committed, Output
from jobs.plan import make_plan, score_frame, start_engines
from jobs.progress import show_progress
from jobs.report import RunReport, make_report
from jobs.session import open_session
from jobs.settings import Settings
from jobs.sources import read_input
from udfs.models import open_model
from udfs.tasks import make_task


def score(
    settings: Settings,
    *,
    overwrite: bool = False,
    spark_log: str | None = None,
    console: Console | None = None,
) -> RunReport:
    """Score a table and write the answers.

    Args:
        settings: The job.
        overwrite: Start afresh in an output directory that holds a gristmill job's results.
        spark_log: Level of Spark's log on the terminal; None keeps it in a file.
        console: Where progress is shown.

    Returns:
        The run's report, which is kept with the output too; its status is `failed` where more rows failed than
        `limits.max_error_rate` allows.

    Raises:
        UserError: Something is wrong with the settings, the input, the output or Java; nothing was written.
        ModelError: Something is wrong with the model; nothing was written.
        JobError: Spark gave up; nothing was committed.
    """
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    report_on = functools.partial(make_report, settings, run_id=run_id, started_at=started_at)
    check_model(settings)
    output = Output(settings)
    spark = open_session(settings.spark, spark_log=spark_log)
    output.check(spark, overwrite=overwrite)
    start_engines(spark, settings)
    frame = read_input(spark, settings)
    plan = make_plan(frame, settings)
    output.begin()

    began = time.monotonic()
    try:
        with show_progress(spark, plan, console or Console(stderr=True)):
            output.write(score_frame(frame, settings, plan))
    except SPARK_ERRORS as error:
        what = explain(error)
        lost = report_on(Committed(), scoring_s=time.monotonic() - began, status="failed", error=what)
        with contextlib.suppress(OSError):  # a full disk has no room for a report either
            output.write_report(run_id, lost.as_dict())
        raise JobError(f"the job failed, nothing of it was committed: {what}") from error
    scoring_s = time.monotonic() - began

    committed = output.committed(spark)
    too_many = committed.failed > settings.limits.max_error_rate * committed.rows
    report = report_on(committed, scoring_s=scoring_s, status="failed" if too_many else "completed")
    output.write_report(run_id, report.as_dict())
    return report


def check_model(settings: Settings) -> None:
    """Look at the model before Spark starts: there, safe, of the task's kind.

    Raises:
        ModelError: It is not.
    """
    spec = settings.spec()
    make_task(spec, open_model(spec.model, spec.revision))


def check_error_rate(report: RunReport, settings: Settings) -> None:
    """Raise if more rows failed than the settings allow.

    Raises:
        TooManyFailed: They did; they are in the output with their errors.
    """
    limit = settings.limits.max_error_rate
    if report.status == "failed":
        raise TooManyFailed(
            f"{report.failed} of {report.rows} rows failed ({report.failed / report.rows:.1%}), more than "
            f"limits.max_error_rate allows ({limit:.1%}). All rows are in {settings.output.path}; look at "
            f"`{settings.output.name}.error` where outcome = 'failed'"
        )


if __name__ == "__main__":
    from jobs.cli import main

    main(["score", *sys.argv[1:]])
