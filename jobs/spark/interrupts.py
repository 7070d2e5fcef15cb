"""Ctrl-C and SIGTERM: Spark's work is cancelled, what is committed stays, and a report says how it ended.

The work runs on a thread. A signal that broke into a conversation with the Java virtual machine would leave the
next answer for the wrong question; so the main thread does nothing but wait for the work or a signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from jobs.errors import SPARK_ERRORS, Interrupted

T = TypeVar("T")
_POLL_S = 0.1
_PATIENCE_S = 15.0


class Stop:
    """Whether the run was told to end, and by which signal."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self.by: int = signal.SIGINT

    def set(self, by: int = signal.SIGINT) -> None:
        self.by = by
        self._told.set()

    def is_set(self) -> bool:
        return self._told.is_set()

    def check(self, message: str) -> None:
        """Raise if the run was told to end.

        Raises:
            Interrupted: It was.
        """
        if self.is_set():
            raise Interrupted(message, by=self.by)


def run_interruptibly(work: Callable[[Stop], T]) -> T:
    """Run `work` on a thread and end it on Ctrl-C or SIGTERM.

    A second signal, or work that does not end, ends the process at once.

    Raises:
        Interrupted: From the work, or because it had not got far enough to notice.
    """
    stop = Stop()
    pool = ThreadPoolExecutor(1, thread_name_prefix="gristmill-job")
    with _signals_to(stop):
        doing = pool.submit(work, stop)
        pool.shutdown(wait=False)
        while not doing.done() and not stop.is_set():
            wait([doing], timeout=_POLL_S)
        until = time.monotonic() + _PATIENCE_S
        while not doing.done() and time.monotonic() < until:
            cancel_all()  # again and again: a Spark job may begin just afterwards
            wait([doing], timeout=1.0)
        if not doing.done():
            os._exit(128 + stop.by)
    return doing.result()


def cancel_all() -> None:
    """Cancel all that Spark does for this session."""
    from pyspark.sql import SparkSession

    with contextlib.suppress(*SPARK_ERRORS):
        spark: Any = SparkSession.getActiveSession() or getattr(SparkSession, "_instantiatedSession", None)
        if spark is None:
            return
        for query in spark.streams.active:
            query.stop()
        spark.interruptAll()


@contextlib.contextmanager
def _signals_to(stop: Stop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _: Any) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set(signum)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
