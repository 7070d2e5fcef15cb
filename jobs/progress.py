"""A progress bar from Spark's own task counts; nothing where there is no terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jobs.plan import Plan

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class _RowsColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = f"{task.speed:,.0f} rows/s" if task.speed else ""
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f} rows  {speed}")


@contextlib.contextmanager
def show_progress(spark: SparkSession, plan: Plan, console: Console, *, every_s: float = 0.5) -> Iterator[None]:
    """Show rows, rows/s and the time left while the body runs.

    A task's rows count when it ends, so the bar moves in steps of a task. Spark Connect does not tell of tasks in
    this way: the bar then only says that the job is alive.
    """
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _RowsColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("reading", total=plan.rows)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(every_s):
                share = _share_done(spark, plan)
                if share is not None:
                    progress.update(bar, description="scoring", completed=int(share * plan.rows))

        watcher = threading.Thread(target=watch, name="gristmill-progress", daemon=True)
        if console.is_terminal:
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if watcher.is_alive():
                watcher.join()


def _share_done(spark: SparkSession, plan: Plan) -> float | None:
    context: Any = getattr(spark, "_sc", None)
    if context is None:
        return None
    tracker = context.statusTracker()
    for job in tracker.getActiveJobsIds():
        stages = sorted(getattr(tracker.getJobInfo(job), "stageIds", []))
        # The job that scores has the shuffle's stage behind it; the one that fills the shuffle has a single stage.
        info = tracker.getStageInfo(stages[-1]) if len(stages) > 1 else None
        if info is not None and info.numTasks == plan.partitions:
            return info.numCompletedTasks / info.numTasks
    return None
