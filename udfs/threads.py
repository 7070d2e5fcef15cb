"""How many CPU threads this process may use."""

from __future__ import annotations

import os


def task_threads() -> int:
    """What Spark gives a task (`OMP_NUM_THREADS`, from `spark.task.cpus`), else every core that we may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):  # absent on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
