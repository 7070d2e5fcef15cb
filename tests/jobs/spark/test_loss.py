"""A Java process that has ended is told as that, whatever Python made of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark import SparkContext

from jobs.errors import InputError, Interrupted, JobError, SparkGone, unreadable_input
from jobs.spark import loss
from jobs.spark.loss import telling_of_loss

ERRORS = [
    ConnectionRefusedError(111, "Connection refused"),
    Py4JNetworkError("Answer from Java side is empty"),
    Py4JError("An error occurred while calling o1.x"),
    AttributeError("'NoneType' object has no attribute 'x'"),
    JobError("increment 0 cannot be committed: Connection refused"),
    unreadable_input(Py4JNetworkError("Answer from Java side is empty")),
]


@pytest.fixture
def java(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens as Java does for this process."""
    monkeypatch.setattr(loss, "_SETTLE_S", 0.0)
    monkeypatch.setattr(loss, "_DYING_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = SimpleNamespace(address="127.0.0.1", port=server.getsockname()[1])
        gateway: Any = SimpleNamespace(gateway_parameters=at)
        monkeypatch.setattr(SparkContext, "_gateway", gateway)
        yield server


def _raise(error: Exception, then: str = "") -> None:
    with telling_of_loss(then):
        raise error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_once_java_is_gone_is_told_as_that(error: Exception, java: socket.socket) -> None:
    java.close()
    with pytest.raises(SparkGone, match=r"was killed .*spark.driver.memory .*; go on$") as told:
        _raise(error, "go on")
    assert told.value.exit_code == 5


@pytest.mark.parametrize("error", [*ERRORS[:-1], InputError("no such path")], ids=lambda error: type(error).__name__)
def test_what_is_raised_while_java_listens_stays(error: Exception, java: socket.socket) -> None:
    with pytest.raises(type(error)) as told:
        _raise(error)
    assert told.value is error


def test_what_fails_on_the_way_out_hides_nothing(java: socket.socket) -> None:
    java.close()

    def put_in_order() -> None:
        try:
            _raise(Py4JNetworkError("Answer from Java side is empty"), "2 increments are committed")
        finally:
            raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(SparkGone, match=r"; 2 increments are committed$"), telling_of_loss("go on"):
        put_in_order()


def test_an_interrupt_stays_one(java: socket.socket) -> None:
    java.close()
    with pytest.raises(Interrupted):
        _raise(Interrupted("interrupted"))


def test_without_java_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkContext, "_gateway", None)
    with pytest.raises(JobError, match="its own"):
        _raise(JobError("its own"))
