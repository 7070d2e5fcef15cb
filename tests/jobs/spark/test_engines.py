from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from py4j.protocol import Py4JNetworkError

from jobs.settings import Settings
from jobs.spark import engines
from tests.models import make_encoder
from udfs.wire.home import EngineId


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that looks like Spark's Java virtual machine, beside one that is another."""
    monkeypatch.setattr(engines, "_SUBMIT", "SparkSubmit of this test")  # other tests' Spark may be a child too
    program = shutil.copy("/bin/sh", tmp_path / "java")
    waits, pipe = [str(program), "-c", "read line"], subprocess.PIPE
    with subprocess.Popen(waits, stdin=pipe), subprocess.Popen([*waits, engines._SUBMIT], stdin=pipe) as process:
        yield process


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[EngineId]:
    """The engines that were asked for."""
    found: list[EngineId] = []
    monkeypatch.setattr(engines, "reach_engine", found.append)
    return found


def _settings(tmp_path: Path, **spark: object) -> Settings:
    return Settings.model_validate(
        {
            "input": {"path": "in"},
            "output": {"path": str(tmp_path / "out")},
            "score": {"task": "feature-extraction", "model": make_encoder(tmp_path), "text": "text"},
            "spark": spark,
        }
    )


def _while_spark_starts(settings: Settings, seconds: float = 1.0) -> None:
    with engines.start_beside_spark(settings):
        for thread in threading.enumerate():
            if thread.name == "gristmill-start-beside":
                thread.join(seconds)


def test_the_engine_of_a_local_master_starts_beside_spark(
    tmp_path: Path, java: subprocess.Popen[bytes], reached: list[EngineId]
) -> None:
    settings = _settings(tmp_path)
    _while_spark_starts(settings, 30)
    assert [engine.executor.pid for engine in reached] == [java.pid]
    assert [engine.spec for engine in reached] == [settings.spec()]


@pytest.mark.parametrize(
    "spark",
    [
        {"master": "spark://there:7077"},
        {"master": "local-cluster[2,1,1024]"},
        {"conf": {"spark.master": "yarn"}},
        {"conf": {"spark.pyspark.python": "/another/python"}},
        {"conf": {"spark.executorEnv.TMPDIR": "/another"}},
    ],
)
def test_no_engine_starts_where_executors_may_be_elsewhere_or_live_in_another_environment(
    spark: dict[str, object], tmp_path: Path, java: subprocess.Popen[bytes], reached: list[EngineId]
) -> None:
    _while_spark_starts(_settings(tmp_path, **spark))
    assert reached == []


def test_no_engine_starts_under_spark_submit(
    tmp_path: Path, java: subprocess.Popen[bytes], reached: list[EngineId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    _while_spark_starts(_settings(tmp_path))
    assert reached == []


def test_a_spark_that_dies_before_its_engines_start_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", raised.append)
    spark = mock.Mock()
    type(spark._sc).defaultParallelism = mock.PropertyMock(side_effect=Py4JNetworkError("connection refused"))
    engines.start_engines(spark, _settings(tmp_path))
    for thread in threading.enumerate():
        if thread.name == "gristmill-start":
            thread.join(30)
    assert raised == []
