"""How a run stands, looked at every few seconds: for the output's live file, and for whoever else wants to know.

Rows, tokens and increments are those that are committed. What engines do is known where they run on this machine, by
the status that each keeps; on a cluster nothing is told of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from jobs.errors import SPARK_ERRORS, DeadlineReached, Interrupted
from jobs.hosted.flight import Standing
from jobs.increments.listener import Listener
from jobs.increments.plan import Plan
from jobs.increments.scoring import Run
from jobs.increments.sizing import bytes_per_s
from jobs.output.committed import Committed, Increment, add_up
from jobs.output.directory import Output
from jobs.output.job_note import LIVE
from jobs.output.marks import Mark
from jobs.settings import Settings
from jobs.telling.engines import EngineLook, EngineSums
from jobs.telling.progress import share_done
from udfs.executor import start_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_EVERY_S, EVERY_ON_STORE_S = 5.0, 20.0
_JOIN_S = 5.0
_LEAST_SHARE = 0.02  # of an increment, before which its rate is anybody's guess


@dataclass(frozen=True)
class Live:
    """How a run stands.

    Args:
        run_id, command: The run.
        status: `running`, or how it ended.
        started_at, told_at: When it began, and when this was looked at; `beat` counts the looks.
        host, pid, process: Where its driver is; `process` tells it from a later one with the same number.
        task, model: What it does.
        increments: It has committed so many, with these `counts`, in `scoring_s`.
        increment, increment_rows: What is scored now.
        increment_done: The share of it that is done, as far as Spark tells; null on Spark Connect.
        left_bytes: Of the input's files that are in no committed increment.
        seconds_left: Until all is scored, at the rate so far; null where nothing tells.
        deadline: When it has to end.
        provider: Of a provider's batches: how far they are.
        engines: Of this machine; null where none was seen.
    """

    run_id: str
    command: str
    status: str
    started_at: str
    told_at: str
    beat: int
    host: str
    pid: int
    process: str
    task: str
    model: str
    increments: int = 0
    counts: Committed = field(default_factory=Committed)
    scoring_s: float = 0.0
    increment: int | None = None
    increment_rows: int | None = None
    increment_done: float | None = None
    left_bytes: int | None = None
    seconds_left: float | None = None
    deadline: str | None = None
    provider: Standing | None = None
    engines: EngineSums | None = None

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Live:
        """As `as_dict` wrote it."""
        own = {name: value for name, value in told.items() if name in cls.__dataclass_fields__}
        own["counts"] = Committed(**own["counts"])
        own["provider"] = Standing(**own["provider"]) if own.get("provider") else None
        own["engines"] = EngineSums(**own["engines"]) if own.get("engines") else None
        return cls(**own)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Outlet:
    """Is shown how a run stands; this one does not look."""

    def show(self, live: Live) -> None:
        """Take it on. Does not raise, and does not wait long."""

    def close(self) -> None:
        """Nothing more comes."""


class LiveRun(Listener):
    """Looks after a run on a thread of its own, from its first increment to its end.

    Args:
        spark: Whose tasks are counted.
        settings: The job.
        run: The run.
        output: Where it commits.
        command: What was called.
        outlets: Are shown what is seen.
        engines: Looks at engines; made before the run had any.
    """

    def __init__(
        self,
        spark: SparkSession,
        settings: Settings,
        run: Run,
        output: Output,
        *,
        command: str,
        outlets: Sequence[Outlet] = (),
        engines: EngineLook | None = None,
        every_s: float | None = None,
    ) -> None:
        self._spark, self._run, self._output, self._outlets = spark, run, output, outlets
        self._every_s = every_s or (_EVERY_S if output.folder.is_disk else EVERY_ON_STORE_S)
        self._now = begin_live(settings, run, command)
        self._status = "running"  # as the provider, set by others while a look goes on
        self._provider: Standing | None = None
        self._engines = engines or EngineLook()
        self._known: list[Mark] = []
        self._plan: tuple[int, Plan, float] | None = None
        self._left_at_first: int | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="gristmill-live", daemon=True)

    def expects(self, left_bytes: int | None) -> None:
        """So much of the input is in no increment as the run begins to score."""
        self._left_at_first = left_bytes

    def begins(self, number: int, plan: Plan) -> None:
        self._plan = (number, plan, time.monotonic())

    def flies(self, progress: Standing) -> None:
        self._provider = progress

    def commits(self, increment: Increment) -> None:
        self._plan = None

    def ends(self, status: str) -> None:
        """The run has ended, and how."""
        self._status = status

    def __enter__(self) -> LiveRun:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join(_JOIN_S)
        if self._status == "running":
            self.ends(_name_end(error))
        self._plan = None
        if not self._watcher.is_alive():  # else it waits for a store that does not answer, and that holds nobody up
            self._look()

    def _watch(self) -> None:
        self._look()
        while not self._ended.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # the run itself says what is wrong, and never ends for want of a look
            self._now = self._look_around()
            for outlet in self._outlets:
                outlet.show(self._now)
            if self._run.claim.fault() is None:
                self._output.folder.write_json(LIVE, self._now.as_dict())

    def _look_around(self) -> Live:
        self._known = self._output.marks(self._known)
        known = [mark.made for mark in self._known]
        own = [made for made in known if made.run_id == self._run.run_id]
        now = replace(
            self._now,
            status=self._status,
            provider=self._provider,
            told_at=_tell_time(),
            beat=self._now.beat + 1,
            increments=len(own),
            counts=add_up(made.counts for made in own),
            scoring_s=round(sum(made.seconds for made in own), 3),
            increment=None,
            increment_rows=None,
            increment_done=None,
            engines=self._engines.look(),
        )
        if self._left_at_first is not None:
            now = replace(now, left_bytes=max(0, self._left_at_first - sum(made.input_bytes or 0 for made in own)))
        if self._plan is None:
            return replace(now, seconds_left=_left_s(now, known, None, 0.0))
        number, plan, since = self._plan
        share = None
        with contextlib.suppress(*SPARK_ERRORS):
            share = share_done(self._spark, plan)
        left_s = _left_s(now, known, share, time.monotonic() - since)
        return replace(now, increment=number, increment_rows=plan.rows, increment_done=share, seconds_left=left_s)


def begin_live(settings: Settings, run: Run, command: str) -> Live:
    """A run that begins."""
    return Live(
        run_id=run.run_id,
        command=command,
        status="running",
        started_at=run.started_at.isoformat(timespec="seconds"),
        told_at=_tell_time(),
        beat=0,
        host=platform.node(),
        pid=os.getpid(),
        process=start_of(psutil.Process()),
        task=settings.score.task,
        model=settings.score.model,
        deadline=run.deadline.isoformat(timespec="seconds") if run.deadline else None,
    )


def _left_s(live: Live, known: Sequence[Increment], share: float | None, elapsed_s: float) -> float | None:
    """Seconds until all is scored."""
    if live.status != "running":
        return None
    of_this = elapsed_s * (1 - share) / share if share is not None and share >= _LEAST_SHARE else None
    rate = bytes_per_s([made for made in known if not made.is_retry], live.run_id)
    of_all = live.left_bytes / rate - elapsed_s if live.left_bytes is not None and rate else None
    told = [seconds for seconds in (of_this, of_all) if seconds is not None]
    return round(max(0.0, *told), 1) if told else None


def _name_end(error: BaseException | None) -> str:
    """How a run ended that has no report."""
    if error is None:
        return "completed"
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    return "expired" if isinstance(error, DeadlineReached) else "failed"


def _tell_time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
