"""CPU seconds of a command and all that it starts, by kind of process."""

from __future__ import annotations

import math
import os
import subprocess
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Kind = Literal["jvm", "workers", "engine", "driver"]
_MARK = "GRISTMILL_BENCH_RUN"
_EVERY_S = 0.1
_LOOKS = 5  # a process that is just being started has no environment yet
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
        self._others: Counter[int] = Counter()
        self._ours: dict[int, psutil.Process] = {}
        self._kinds: dict[int, Kind] = {}
        self._cpu: dict[int, float] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look until the command has ended and nothing of it is left."""
        until = math.inf
        while self._look() or not ended.is_set():
            if ended.is_set():
                until = min(until, time.monotonic() + _END_S)
            if time.monotonic() > until:
                break
            time.sleep(_EVERY_S)

    def seconds(self) -> dict[Kind, float]:
        found: defaultdict[Kind, float] = defaultdict(float)
        for pid, kind in self._kinds.items():
            found[kind] += self._cpu[pid]
        return dict(found)

    def _look(self) -> bool:
        for pid in psutil.pids():
            if pid not in self._ours and self._others[pid] < _LOOKS:
                self._others[pid] += 1
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if process.environ().get(_MARK) == self._mark:
                        self._ours[pid] = process
        for pid, process in list(self._ours.items()):
            try:
                times, name, command = process.cpu_times(), process.name(), process.cmdline()
            except psutil.Error:
                del self._ours[pid]
                continue
            if command:  # one that ends has none, and is what it was
                self._kinds[pid] = _kind_of(name, command)
            self._cpu[pid] = times.user + times.system
        return bool(self._ours)


def _kind_of(name: str, command: list[str]) -> Kind:
    if "udfs.engine" in command:
        return "engine"
    if name == "java":
        return "jvm"
    return "workers" if "pyspark.daemon" in command or "pyspark.worker" in command else "driver"
