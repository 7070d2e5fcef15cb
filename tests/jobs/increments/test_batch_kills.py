"""Real jobs by a provider's batches, in processes of their own, that are killed and interrupted; all is paid once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hosted_soak import KEY, check, soak, write_input, write_job
from tests.job_faults import plant
from tests.provider import Pace, Provider, serve_provider

pytestmark = pytest.mark.long
_FIRST, _LAST = (int(n) for n in os.environ.get("GRISTMILL_SOAK_SEEDS", "1:3").split(":"))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serve_provider(pace=Pace(polls=1)) as served:
        yield served


def start(folder: Path, provider: Provider, *args: str, fault: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    site = plant(folder / "site", driver=fault)
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *args, str(folder / "job.yaml")]
    environment = {**os.environ, KEY: provider.key, "PYTHONPATH": f"{site}:{ROOT}"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "step",
    ["requests are written, not noted", "after the create", "before the collected note", "after the write"],
)
def test_a_job_that_is_killed_goes_on_and_pays_nothing_twice(tmp_path: Path, provider: Provider, step: str) -> None:
    keys = write_input(tmp_path, rows=120, files=2)
    write_job(tmp_path, provider, "openai-batch", in_flight=1200)
    fault = {"step": step, "times": 2, "marker": str(tmp_path / "killed")}
    killed = start(tmp_path, provider, "score", fault=fault)
    told = killed.communicate(timeout=300)[1]
    assert killed.returncode == -signal.SIGKILL, told
    again = start(tmp_path, provider, "score")
    told = again.communicate(timeout=300)[1]
    assert again.returncode == 0, told
    check(tmp_path, provider, "openai-batch", keys)


def test_ctrl_c_ends_a_job_that_waits_within_seconds_and_the_next_run_goes_on(
    tmp_path: Path, provider: Provider
) -> None:
    keys = write_input(tmp_path, rows=60, files=1)
    write_job(tmp_path, provider, "openai-batch", in_flight=100_000)
    provider.pace = Pace(polls=10_000)
    waiting = start(tmp_path, provider, "score")
    while not provider.batches and waiting.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    began = time.monotonic()
    waiting.send_signal(signal.SIGINT)
    told = waiting.communicate(timeout=60)[1]
    assert (waiting.returncode, time.monotonic() - began < 15) == (130, True), told
    assert "Traceback" not in told
    assert not any(batch.cancelled for batch in provider.state.batches.values())
    provider.pace = Pace()
    assert start(tmp_path, provider, "score").wait(300) == 0
    check(tmp_path, provider, "openai-batch", keys)
    assert provider.batches == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(_FIRST, _LAST))
def test_soak(tmp_path: Path, seed: int) -> None:
    """Whatever befalls the first runs, the last one completes and nothing is lost, twice or paid twice."""
    soak(tmp_path, seed=seed)
