"""CPU seconds of a command and all that it starts, by kind of process."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Kind = Literal["jvm", "workers", "engine", "driver"]
_MARK = "GRISTMILL_BENCH_RUN"
_EVERY_S = 0.1
_END_S = 30.0  # an engine ends by itself a little after its executor


@dataclass(frozen=True)
class Ran:
    """What a command took.

    Args:
        seconds: From its start to its end.
        cpu: CPU seconds by kind of process, as they were last seen: a process that works until it ends loses up to
            a tenth of a second.
        rc: Its exit status.
    """

    seconds: float
    cpu: dict[Kind, float]
    rc: int


def run_counted(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Ran:
    """Run a command to its end and to that of all that it has started, and count their CPU seconds.

    They are found by a mark in their environment: an engine outlives the process that starts it.

    Args:
        command: What is run.
        env: Beside this process' own environment.
        cwd: Where it is run.
        log: Where its output goes.
    """
    mark = uuid.uuid4().hex
    clock = _Clock(mark)
    began = time.perf_counter()
    with log.open("wb") as out:
        marked = {**os.environ, **env, _MARK: mark}
        process = subprocess.Popen(command, env=marked, cwd=cwd, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        ended = threading.Event()
        watch = threading.Thread(target=clock.watch, args=(ended,), daemon=True)
        watch.start()
        try:
            rc = process.wait()
        finally:
            seconds = time.perf_counter() - began
            ended.set()
            process.kill()
            watch.join()
    return Ran(seconds, clock.seconds(), rc)


class _Clock:
    """Looks again and again at all processes with a mark."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._known: set[int] = set()
        self._ours: dict[int, psutil.Process] = {}
        self._seen: dict[int, tuple[Kind, float]] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look until the command has ended and nothing of it is left."""
        until = float("inf")
        while (alive := self._look()) or not ended.is_set():
            if ended.is_set():
                until = min(until, time.monotonic() + _END_S)
            if time.monotonic() > until or (ended.is_set() and not alive):
                break
            time.sleep(_EVERY_S)

    def seconds(self) -> dict[Kind, float]:
        found: Counter[Kind] = Counter()
        for kind, seconds in self._seen.values():
            found[kind] += seconds  # type: ignore[assignment]  # a Counter of floats
        return dict(found)

    def _look(self) -> bool:
        pids = set(psutil.pids())
        for pid in pids - self._known:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.environ().get(_MARK) == self._mark:
                    self._ours[pid] = process
        self._known = pids
        for pid, process in list(self._ours.items()):
            try:
                times = process.cpu_times()
                gone = process.status() == psutil.STATUS_ZOMBIE
                kind = self._seen[pid][0] if gone else _kind_of(process)
                self._seen[pid] = (kind, times.user + times.system)
            except (psutil.Error, KeyError):
                gone = True
            if gone:
                del self._ours[pid]
        return bool(self._ours)


def _kind_of(process: psutil.Process) -> Kind:
    command = " ".join(process.cmdline())
    if "udfs.engine" in command:
        return "engine"
    if process.name() == "java":
        return "jvm"
    return "workers" if "pyspark.daemon" in command or "pyspark.worker" in command else "driver"
