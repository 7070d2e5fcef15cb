"""Processes of their own, as a test sees them from outside."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from tests.conftest import ROOT


def running_engines(below: Path) -> list[psutil.Process]:
    """The engine processes that live below a directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            there = any(part.startswith(str(below)) for part in command)
            if "udfs.engine" in command and there and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def await_end(process: psutil.Process, *, within_s: float = 30) -> None:
    """Wait until a process has ended; one that nobody has reaped yet has.

    Raises:
        TimeoutError: It has not.
    """
    until = time.monotonic() + within_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                raise TimeoutError(f"{process} has not ended within {within_s} s")
            time.sleep(0.05)


def without_spark(folder: Path) -> dict[str, str]:
    """The environment of a process that finds neither pyspark nor Java."""
    hidden = folder / "hidden/pyspark"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')")
    return {**os.environ, "PYTHONPATH": f"{hidden.parent}:{ROOT}", "JAVA_HOME": "", "PATH": str(folder)}
