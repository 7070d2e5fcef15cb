"""Ctrl-C and SIGTERM: Spark's work is cancelled, what is committed stays, and a report says how it ended.

The work runs on a thread. A signal that broke into a conversation with the Java virtual machine would leave the
next answer for the wrong question; so the main thread does nothing but wait for the work or a signal, and not for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from jobs.errors import SPARK_ERRORS, Interrupted

T = TypeVar("T")
_POLL_S = 0.1
_PATIENCE_S = 15.0


class Stop:
    """Whether the run was told to end, and by which signal; or its work is cancelled for another reason."""

    def __init__(self) -> None:
        self._told, self._cancelled = threading.Event(), threading.Event()
        self.by: int = signal.SIGINT

    def set(self, by: int = signal.SIGINT) -> None:
        self.by = by
        self._told.set()
        self._cancelled.set()

    def is_set(self) -> bool:
        return self._told.is_set()

    def cancel(self) -> None:
        """Cancel what Spark does, where the run was not told to end; whoever calls knows why."""
        self._cancelled.set()
        cancel_all()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self, message: str) -> None:
        """Raise if the run was told to end.

        Raises:
            Interrupted: It was.
        """
        if self.is_set():
            raise Interrupted(message, by=self.by)


def run_interruptibly(work: Callable[[Stop], T]) -> T:
    """Run `work` on a thread and end it on Ctrl-C or SIGTERM; a second signal ends the process at once.

    Raises:
        Interrupted: From the work, or because it did not end; it is left then, on a thread that ends with the process.
    """
    stop, doing = Stop(), Future[T]()
    with _signals_to(stop):
        _start(lambda: _fulfil(doing, lambda: work(stop)))
        while not doing.done() and not stop.is_set():
            wait([doing], timeout=_POLL_S)
        if not doing.done():
            _start(lambda: _keep_cancelling(doing))  # Spark may not answer
            wait([doing], timeout=_PATIENCE_S)
        if not doing.done():
            raise Interrupted(
                f"interrupted; what was running did not end within {_PATIENCE_S:.0f} s, and was left. What was "
                "committed stays; the same command goes on from there",
                by=stop.by,
            )
    return doing.result()


def cancel_all() -> None:
    """Cancel all that Spark does for this session."""
    from pyspark.sql import SparkSession

    with contextlib.suppress(*SPARK_ERRORS):
        spark: Any = SparkSession.getActiveSession() or getattr(SparkSession, "_instantiatedSession", None)
        if spark is None:
            return
        for query in spark.streams.active:
            with contextlib.suppress(*SPARK_ERRORS):  # it did not stop in time
                query.stop()
        spark.interruptAll()


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="gristmill-job", daemon=True).start()


def _fulfil(doing: Future[T], work: Callable[[], T]) -> None:
    try:
        doing.set_result(work())
    except BaseException as error:  # noqa: BLE001 - whoever waits raises it
        doing.set_exception(error)


def _keep_cancelling(doing: Future[T]) -> None:
    while not doing.done():
        cancel_all()  # again and again: a Spark job may begin just afterwards
        wait([doing], timeout=1.0)


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
