"""A local session fits its machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.spark.session import fit_machine, has_gpu


@pytest.mark.parametrize(
    ("cores", "gib", "heap", "java"),
    [(2, 4, "1024m", "Serial"), (2, 24, "3072m", "Serial"), (16, 128, "8192m", "Parallel")],
)
def test_heap_and_collector_follow_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: int, heap: str, java: str
) -> None:
    for name in ("SPARK_DRIVER_MEMORY", "SPARK_CONF_DIR", "SPARK_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=gib << 30))
    conf = fit_machine()
    assert conf["spark.driver.memory"] == heap
    assert java in conf["spark.driver.extraJavaOptions"]


def test_a_heap_that_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "2g")
    assert "spark.driver.memory" not in fit_machine()


@pytest.mark.parametrize(
    ("conf", "visible", "device", "found"),
    [
        ({"spark.master": "local[2]"}, None, True, True),
        ({"spark.master": "local[2]"}, "", True, False),
        ({"spark.master": "local[2]"}, None, False, False),
        ({"spark.master": "spark://host:7077"}, None, True, False),
        ({"spark.master": "yarn", "spark.executor.resource.gpu.amount": "1"}, "", False, True),
    ],
)
def test_gpus_are_told_by_sparks_setting_or_by_this_machine(
    monkeypatch: pytest.MonkeyPatch, conf: dict[str, str], visible: str | None, device: bool, found: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")] if device else []))
    spark: Any = SimpleNamespace(conf=conf)
    assert has_gpu(spark) is found
