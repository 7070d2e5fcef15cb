"""A Spark application for `test_engine_cluster.py`: it scores, breaks things, and says what it saw, as JSON.

python tests/jobs/spark/engine_app.py SCENARIO CONF
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from jobs.increments.plan import Plan, score_frame
from jobs.input.sources import read_input
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.settings import Settings
from jobs.spark.engines import start_engines
from jobs.spark.session import open_session
from tests.processes import await_end, running_engines

PARTITIONS = 16


class App:
    """One application; each `score` is a job of two stages, and an increment of the output."""

    def __init__(self, conf: str) -> None:
        self.settings: Settings = load_settings(conf)
        self.spark: Any = open_session(self.settings.spark)
        self.output = Output(self.settings)
        self.output.begin()
        self.increments = 0

    def score(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Score the input once more; `meanwhile` runs as soon as some tasks are done."""
        frame = read_input(self.spark, self.settings)
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            breaking = pool.submit(self._break, meanwhile, ended) if meanwhile else None
            self.output.write(score_frame(frame, self.settings, Plan(frame.count(), PARTITIONS)), self.increments)
            ended.set()
            if breaking:
                breaking.result()
        self.increments += 1

    def _break(self, meanwhile: Callable[[], None], ended: threading.Event) -> None:
        tracker = self.spark.sparkContext.statusTracker()
        while not ended.wait(0.01):
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            if any(s and s.numTasks == PARTITIONS and 2 <= s.numCompletedTasks < PARTITIONS - 4 for s in stages):
                meanwhile()
                return
        raise RuntimeError("the job was over before anything could be broken")

    def engines(self) -> list[psutil.Process]:
        """Engine processes of this application's executors."""
        return running_engines(Path(str(self.settings.spark.conf["spark.executorEnv.TMPDIR"])))

    def found(self) -> dict[str, Any]:
        """What is there at the end, and how many tasks failed on the way."""
        gateway = self.spark.sparkContext._jsc.sc()
        executors = gateway.statusStore().executorList(False)
        failed = sum(executors.apply(i).failedTasks() for i in range(executors.size()))
        return {"failed_tasks": failed, "engines": [process.pid for process in self.engines()]}


def executors() -> list[psutil.Process]:
    """Executor JVMs of this application."""
    found = []
    for process in _children():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if any("CoarseGrainedExecutorBackend" in part for part in process.cmdline()):
                found.append(process)
    return found


def workers() -> list[psutil.Process]:
    """Python workers: children of the daemons, which are children of the executors."""
    return [worker for executor in executors() for daemon in _children_of(executor) for worker in _children_of(daemon)]


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _children_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        return process.children()
    return []


def idle_and_killed_workers(app: App) -> dict[str, Any]:
    """Jobs, an idle minute in which Spark ends its workers, a job in which one is killed."""
    start_engines(app.spark, app.settings)
    app.score()
    app.score()
    before = {process.pid for process in workers()}
    reaped_after = time.monotonic() + 100
    while workers() and time.monotonic() < reaped_after:
        time.sleep(1)
    left = len(workers())
    killed: list[int] = []

    def kill_a_worker() -> None:
        until = time.monotonic() + 10
        while not killed and time.monotonic() < until:
            for victim in workers()[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGKILL)
                    killed.append(victim.pid)

    app.score(kill_a_worker)
    return {"workers_before": len(before), "workers_after_idling": left, "killed": len(killed)}


def killed_executor(app: App) -> dict[str, Any]:
    """A job in which an executor's Java virtual machine is killed."""
    app.score()
    seconds: list[float] = []

    def kill_an_executor() -> None:
        by_owner = {_owner(engine): engine for engine in app.engines()}
        victim = next(executor for executor in executors() if executor.pid in by_owner)
        victim.send_signal(signal.SIGKILL)
        began = time.monotonic()
        await_end(by_owner[victim.pid])
        seconds.append(time.monotonic() - began)

    app.score(kill_an_executor)
    return {"engine_gone_after_s": seconds}


def poison(app: App) -> dict[str, Any]:
    """Two increments of the same table."""
    app.score()
    app.score()
    return {}


def _owner(engine: psutil.Process) -> int:
    """The executor that an engine belongs to."""
    request = json.loads((Path(engine.cmdline()[-2]) / "request.json").read_text())
    return int(request["executor"]["pid"])


if __name__ == "__main__":
    made = App(sys.argv[2])
    seen = globals()[sys.argv[1]](made)
    print(json.dumps(seen | made.found()))
    made.spark.stop()
    sys.stdout.flush()
    os._exit(0)
