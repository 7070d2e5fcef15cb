"""How a run goes: a bar from Spark's own task counts where there is a terminal, and lines that tell what matters."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
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

from jobs.errors import SPARK_ERRORS
from jobs.hosted.flight import Standing
from jobs.increments.listener import Listener
from jobs.increments.plan import Plan
from jobs.output.committed import Increment

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_JOIN_S = 5.0


class _RowsColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = f"{task.speed:,.0f} rows/s" if task.speed else ""
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f} rows  {speed}")


class ProgressBar(Listener):
    """Shows rows, rows/s and the time left of each increment, and how many increments are done.

    A task's rows count when it ends, so the bar moves in steps of a task. Spark Connect does not tell of tasks in
    this way: the bar then only says that the job is alive.

    Args:
        spark: Whose tasks are counted.
        console: Where it is shown, if that is a terminal.
        told: Is called with each increment that is committed.
    """

    def __init__(
        self,
        spark: SparkSession,
        console: Console,
        *,
        told: Callable[[Increment], None] = lambda _: None,
        every_s: float = 0.5,
    ) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _RowsColumn(), TimeRemainingColumn()]
        self._bar = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True, redirect_stderr=False
        )
        self._spark, self._console, self._told, self._every_s = spark, console, told, every_s
        self._task = self._bar.add_task("reading", total=None)
        self._plan: Plan | None = None
        self._number, self._ended_batches = 0, 0
        self._committed = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="gristmill-progress", daemon=True)

    def begins(self, number: int, plan: Plan) -> None:
        self._plan, self._number = plan, number
        self._bar.reset(self._task, total=plan.rows, description=f"increment {number}")

    def flies(self, standing: Standing) -> None:
        told = (
            f"increment {self._number}: {standing.in_flight} batches in flight, {standing.ended} ended, "
            f"{standing.answered:,} of {standing.requests:,} requests answered"
        )
        if not self._console.is_terminal and standing.ended != self._ended_batches:
            self._console.print(told, style="dim", soft_wrap=True)
        self._ended_batches = standing.ended
        share = standing.answered / standing.requests if standing.requests else 1.0
        self._bar.update(self._task, description=told, completed=int(share * (self._plan.rows if self._plan else 0)))

    def commits(self, increment: Increment) -> None:
        self._plan, self._committed = None, self._committed + 1
        self._bar.reset(self._task, total=None, description=f"{self._committed} increments done; reading")
        self._told(increment)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        if self._console.is_terminal:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join(_JOIN_S)  # a Spark that does not answer holds nobody up
        self._bar.stop()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            with contextlib.suppress(*SPARK_ERRORS):  # a Spark that died is told by the job
                if (plan := self._plan) and (share := share_done(self._spark, plan)) is not None:
                    self._bar.update(self._task, completed=int(share * plan.rows))


def share_done(spark: SparkSession, plan: Plan) -> float | None:
    """The share of an increment's tasks that have ended; None where Spark does not tell."""
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
