"""One to three faults at random, many times over: GRISTMILL_SOAK_SEEDS=1:50 python -m pytest -m slow -k soak"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.job_faults import STEPS
from tests.jobs.test_faults import Job, committed, descendants

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
_FIRST, _LAST = (int(n) for n in os.environ.get("GRISTMILL_SOAK_SEEDS", "1:4").split(":"))
_DEATHS: dict[str, Callable[[Job, Any], list[psutil.Process]]] = {
    "worker": lambda _, driver: [p for d in descendants(driver, "pyspark.daemon") for p in d.children()],
    "engine": lambda job, _: [p for p in psutil.process_iter(["cmdline"]) if _is_engine(p, job)],
    "java": lambda _, driver: [p for p in psutil.Process(driver.pid).children() if p.name() == "java"],
    "driver": lambda _, driver: [psutil.Process(driver.pid)],
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(_FIRST, _LAST))
def test_soak(tmp_path: Path, seed: int) -> None:
    """Whatever befalls the first runs, the last one completes and nothing is lost or twice."""
    chance = random.Random(seed)
    files = chance.randint(2, 5)
    job = Job(tmp_path, files=files, spark={"master": "local[2,4]"}, batching={"max_batch_tokens": 64})
    for number in range(chance.randint(1, 3)):
        _strike(job, chance, tmp_path / f"marker-{number}")
        if chance.random() < 0.3:
            job.add_file(files + number, 60)
    for _ in range(2):  # the second one finds nothing new
        job.run()
    job.check()
    assert job.reports()[-1]["rows"] == 0


def _strike(job: Job, chance: random.Random, marker: Path) -> None:
    """Run once, with a fault."""
    kind = chance.choice(["step", "step", "deadline", "signal", *_DEATHS])
    print(f"fault: {kind}", flush=True)
    if kind == "step":
        step = chance.choice([name for name in STEPS if "retry" not in name])
        fault = {"step": step, "times": chance.randint(1, 3), "marker": str(marker)}
        print(f"  {fault}", flush=True)
        job.start(driver=fault).communicate(timeout=300)
        return
    late = f"limits.deadline={chance.randint(8, 25)}s"
    process = job.start("score", *(["--set", late] if kind == "deadline" else []), engine={"sleep_s": 0.1})
    if kind != "deadline":
        time.sleep(chance.uniform(3, 25))
        there = committed(job)
        print(f"  after {there} increments", flush=True)
        if kind == "signal":
            process.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
        elif process.poll() is None and (victims := _DEATHS[kind](job, process)):
            chance.choice(victims).kill()
    told = process.communicate(timeout=300)[1]
    before_spark = kind == "java" and "Spark does not start" in told  # killed so early, it looks like a bad setting
    assert process.returncode in (0, 1, 4, 130, 143, -signal.SIGKILL) or before_spark, told


def _is_engine(process: psutil.Process, job: Job) -> bool:
    command = process.info["cmdline"] or []
    return "udfs.engine" in command and any(part.startswith(str(job.temporary)) for part in command)
