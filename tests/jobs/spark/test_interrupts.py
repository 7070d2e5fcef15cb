"""A run that is told to end does, whatever hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs.errors import Interrupted, JobError
from jobs.increments import scoring
from jobs.spark import interrupts
from jobs.spark.interrupts import Stop, run_interruptibly


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What ends this process, as an operator does."""
    monkeypatch.setattr(interrupts, "_PATIENCE_S", 0.5)
    return lambda: os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Hangs until the test is over: a thread that is left would cancel what later tests do."""
    over = threading.Event()
    yield lambda: over.wait() and None
    over.set()
    for thread in threading.enumerate():
        if thread.name == "gristmill-job":
            thread.join(timeout=10)


@pytest.mark.parametrize("answers", [True, False], ids=["Spark answers", "Spark does not answer"])
def test_work_that_hangs_is_left(
    answers: bool, hang: Callable[[], None], terminated: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "cancel_all", (lambda: None) if answers else hang)

    def work(stop: Stop) -> None:
        terminated()
        hang()

    with pytest.raises(Interrupted, match=r"did not end within .* was left.*; the same command goes on") as told:
        run_interruptibly(work)
    assert told.value.exit_code == 143


def test_work_that_ends_tells_how_itself(terminated: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "cancel_all", lambda: None)

    def work(stop: Stop) -> None:
        terminated()
        while not stop.is_set():
            time.sleep(0.01)
        raise JobError("told")

    with pytest.raises(JobError, match="told"):
        run_interruptibly(work)


class _Hanging:
    """A query whose increment hangs: it does not stop in time, as Spark tells."""

    def awaitTermination(self, timeout: float) -> bool:
        return False

    def stop(self) -> None:
        from py4j.protocol import Py4JError

        raise Py4JError("Stream Execution thread failed to stop within 5000 milliseconds")


@pytest.mark.parametrize("end", [Stop.set, Stop.cancel], ids=["told to end", "the output is another driver's"])
def test_a_query_that_does_not_stop_ends_the_run(end: Callable[[Stop], None], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict[str, str]()

    class Conf:
        def get(self, key: str, default: Any) -> Any:
            return kept.get(key, default)

        def set(self, key: str, value: str) -> None:
            kept[key] = value

        def unset(self, key: str) -> None:
            del kept[key]

    class Stream:
        sparkSession = type("Session", (), {"conf": Conf()})

        def __getattr__(self, name: str) -> Any:
            return self if name == "writeStream" else lambda *_, **__: self

        def start(self) -> _Hanging:
            assert kept == {"spark.sql.streaming.stopTimeout": "5s"}
            return _Hanging()

    stop, stream = Stop(), Stream()
    end(stop)
    run_query: Any = scoring._run_query
    with pytest.raises(JobError, match="failed to stop within 5000"):
        run_query(stream, None, "", stop)
    assert not kept
