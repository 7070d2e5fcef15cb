"""Faults for jobs under test: a driver that is killed at a step, engines that compute a checksum or misbehave.

As in `engine_faults`, a `sitecustomize.py` that the test plants changes the processes as they start; the product has no
switch for it. Each fault strikes once: it leaves a marker file.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.engine_faults import ROOT
from tests.engine_faults import install as install_engine

_SITE = """
import sys
sys.path.insert(0, {root!r})
if "udfs.engine" in sys.orig_argv and {engine!r} is not None:
    from tests.job_faults import change_engine
    change_engine(**{engine!r})
if any("jobs.cli" in part for part in sys.orig_argv) and {driver!r} is not None:
    from tests.job_faults import change_driver
    change_driver(**{driver!r})
"""

# Steps of the protocol, each the start of a function: (module, class, function).
STEPS = {
    "before the write": ("jobs.output.directory", None, "write_parts"),
    "during the write": ("jobs.output.directory", None, "write_parts"),
    "before Spark's write": ("jobs.output.frames", "Frames", "write"),
    "during Spark's write": ("jobs.output.frames", "Frames", "write"),
    "after the write": ("jobs.output.directory", "Output", "commit"),
    "before it is put in its place": ("jobs.folder", "Folder", "rename"),
    "before it is in the table": ("jobs.output.directory", "Output", "_move"),
    "during the transaction": ("jobs.output.tables", "Table", "put"),
    "in the table, not noted": ("jobs.output.marks", "Marks", "keep"),
    "its failed rows are kept": ("jobs.folder", "Folder", "rename"),
    "after the commit": ("jobs.increments.scoring", "ScoreIncrement", "_go_on"),
    "before the report": ("jobs.output.directory", "Output", "write_report"),
    "retry is kept, not shown": ("jobs.increments.retrying", None, "_publish"),
}
# Steps of a provider's batch, likewise; those of the official clients are called after our own notes.
BATCH_STEPS = {
    "requests are written, not noted": ("jobs.hosted.ledger", "Ledger", "keep_asked"),
    "before the intent": ("jobs.hosted.ledger", "Ledger", "intend"),
    "after the intent": ("jobs.hosted.flight", "Flight", "_make"),
    "before OpenAI's create": ("openai.resources.batches", "Batches", "create"),
    "before Anthropic's create": ("anthropic.resources.messages.batches", "Batches", "create"),
    "after the create": ("jobs.hosted.ledger", "Ledger", "keep_created"),
    "after the created note": ("jobs.hosted.flight", "Flight", "_look"),
    "before the download": ("jobs.hosted.flight", "Flight", "_download"),
    "after the download": ("jobs.hosted.ledger", "Ledger", "write_results"),
    "before the collected note": ("jobs.hosted.ledger", "Ledger", "keep_collected"),
    "all is collected": ("jobs.hosted.flight", "Flight", "_land"),
}


def plant(folder: Path, *, engine: dict[str, Any] | None = None, driver: dict[str, Any] | None = None) -> str:
    """Write what changes engines and drivers; returns what has to be on PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE.format(root=str(ROOT), engine=engine, driver=driver))
    return str(folder)


def change_engine(
    *,
    marker: str | None = None,
    after: int = 0,
    sleep_s: float = 0.0,
    way: str | None = None,
    slow: str | None = None,
) -> None:
    """An engine without a model: an item's output is a checksum of its tokens.

    Args:
        marker: It misbehaves once, and leaves this file.
        after: Micro-batches before it does.
        sleep_s: What each micro-batch takes.
        way: `kill` it.
        slow: A file; the first micro-batch of all, which leaves it, takes long.
    """
    from udfs.engine import model

    install_engine(width=4)
    run, ran = model.Model.run, [0]

    def checksum(self: Any, items: Any, indices: np.ndarray) -> Any:
        ran[0] += 1
        if way and ran[0] > after and marker and _first_time(marker):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(12 if slow and _first_time(slow) else sleep_s)
        values, width = run(self, items, indices)
        values[:, 0] = [items.ids[items.offsets[i] : items.offsets[i + 1]].sum() for i in indices]
        return values, width

    model.Model.run = checksum  # type: ignore[method-assign]


def change_driver(
    *,
    step: str | None = None,
    marker: str = "",
    times: int = 1,
    way: str = "kill",
    deadline_in_s: float | None = None,
) -> None:
    """A driver that is killed as it comes to a step, or that has a deadline soon after increment 1 has begun.

    Args:
        step: One of STEPS or BATCH_STEPS.
        marker: A file; a driver that finds it lives.
        times: It dies when it comes there for the so-manieth time.
        way: `kill java` kills its Java alone, `hang` has the step never end, and `fail` is a disk that is full.
    """
    if deadline_in_s is not None:
        _set_deadline(deadline_in_s)
    if step is None:
        return
    module, cls, name = (STEPS | BATCH_STEPS)[step]
    owner: Any = __import__(module, fromlist=["_"])
    owner = getattr(owner, cls) if cls else owner
    function, came = getattr(owner, name), [0]

    def deadly(*args: Any, **kwargs: Any) -> Any:
        came[0] += 1
        if came[0] == times:
            if step == "during the transaction":
                place = Path(args[0].place)
                before = set(place.rglob("*.parquet"))
                _kill_when(lambda: set(place.rglob("*.parquet")) - before, marker)
            elif step.startswith("during"):
                begun = "_temporary/*/*" if "Spark" in step else "*.parts/*"
                _kill_when(lambda: any(Path(args[0].path, "_gristmill/writing").rglob(begun)), marker)
            elif _first_time(marker):
                _strike(way)
        return function(*args, **kwargs)

    setattr(owner, name, deadly)


def _strike(way: str) -> None:
    if way == "fail":
        raise OSError(errno.ENOSPC, "No space left on device")
    if way == "hang":
        threading.Event().wait()
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    for child in psutil.Process().children():
        if child.name() == "java":
            child.kill()


def _set_deadline(seconds: float) -> None:
    """However long the start of everything takes: a deadline in the settings would have to guess that."""
    from jobs.increments.scoring import ScoreIncrement

    commit = ScoreIncrement.commit

    def hurried(self: Any, frame: Any, number: int) -> None:
        if number == 1:
            deadline = datetime.now(UTC) + timedelta(seconds=seconds)
            self._run = replace(self._run, deadline=deadline)
        commit(self, frame, number)

    ScoreIncrement.commit = hurried  # type: ignore[method-assign]


def _kill_when(ready: Callable[[], bool], marker: str) -> None:
    def watch() -> None:
        while not ready():
            time.sleep(0.005)
        if _first_time(marker):
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _first_time(marker: str) -> bool:
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
