from __future__ import annotations

import threading
import time
from io import StringIO
from typing import Any

import pytest
from py4j.protocol import Py4JNetworkError
from rich.console import Console

from jobs.increments.plan import Plan
from jobs.telling.progress import ProgressBar


class DeadSpark:
    """A session whose Java virtual machine is gone; `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def _sc(self) -> Any:
        self.asked += 1
        raise Py4JNetworkError("connection refused")


def test_a_spark_that_dies_under_its_bar_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    spark, raised = DeadSpark(), list[Any]()
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with ProgressBar(spark, Console(file=StringIO(), force_terminal=True), every_s=0.001) as bar:  # type: ignore[arg-type]
        bar.begins(0, Plan(10, 1))
        while not spark.asked:
            time.sleep(0.001)
    assert raised == []
