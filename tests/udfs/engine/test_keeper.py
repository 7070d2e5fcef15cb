"""How long an engine lives: as long as its executor, and as somebody needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine_faults import read_lines
from tests.engine_rows import Faults, codes_of, rows_of
from tests.processes import await_end, running_engines
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec

pytestmark = pytest.mark.long

_WORKER = """
import itertools, sys
import pyarrow as pa
from udfs.executor import executor_of
from udfs.worker.scoring import score
from udfs.tasks.registry import make_spec

spec = make_spec(task="feature-extraction", model=sys.argv[1], precision="float32", window_rows=50)
batches = (pa.array([f"red tea {batch} {row}" for row in range(50)]) for batch in itertools.count())
for number, result in enumerate(score(batches, spec, executor=executor_of(int(sys.argv[2])))):
    print(result[0]["engine"].as_py(), flush=True)
"""


def _start_worker(encoder: str, executor: int) -> subprocess.Popen[str]:
    """A worker with no end of rows, below another process; its lines name the engine that answers."""
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, encoder, str(executor)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_workers_come_and_go_the_engine_stays(encoder: str, faults: Faults, top: Path) -> None:
    starts = faults()
    try:
        workers = [_start_worker(encoder, os.getpid()) for _ in range(2)]
        names = {worker.stdout.readline() for worker in workers}  # type: ignore[union-attr]
        workers[0].kill()
        workers[0].wait()
        names |= {workers[1].stdout.readline() for _ in range(5)}  # type: ignore[union-attr]
        workers.append(_start_worker(encoder, os.getpid()))
        names.add(workers[2].stdout.readline())  # type: ignore[union-attr]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert len(names) == 1
    assert len(read_lines(starts)) == 1


def test_an_engine_ends_with_its_executor_and_leaves_nothing(encoder: str, faults: Faults, top: Path) -> None:
    faults()
    executors = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    workers = []
    try:
        workers = [_start_worker(encoder, executor.pid) for executor in executors]
        names = [worker.stdout.readline() for worker in workers]  # type: ignore[union-attr]
        assert names[0] != names[1]  # two applications on one host
        engines = running_engines(top)
        assert len(engines) == 2
        executors[0].kill()
        executors[0].wait()
        await_end(next(engine for engine in engines if str(engine.pid) in names[0]))
        assert workers[1].stdout.readline() == names[1]  # type: ignore[union-attr]
        assert [str(engine.pid) in names[1] for engine in running_engines(top)] == [True]
    finally:
        for process in (*executors, *workers):
            process.kill()
            process.wait()
    for engine in engines:
        await_end(engine)
    assert running_engines(top) == []
    assert list(top.iterdir()) == []


def test_an_engine_that_loads_ends_with_its_executor_too(encoder: str, faults: Faults, top: Path) -> None:
    starts = faults(at_start="hang")
    executor = subprocess.Popen(["sleep", "1000"])
    worker = _start_worker(encoder, executor.pid)
    try:
        until = time.monotonic() + 60
        while not read_lines(starts) and time.monotonic() < until:
            time.sleep(0.1)
        (engine,) = running_engines(top)
    finally:
        for process in (worker, executor):
            process.kill()
            process.wait()
    await_end(engine)
    assert list(top.iterdir()) == []


def test_what_a_killed_run_left_is_swept_and_in_nobodys_way(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults()
    executor = subprocess.Popen(["sleep", "1000"])
    worker = _start_worker(spec.model, executor.pid)
    try:
        worker.stdout.readline()  # type: ignore[union-attr]
    finally:
        worker.kill()  # or it would see to another engine
        for process in (worker, *running_engines(top), executor):
            process.kill()
            process.wait()
    (stale,) = top.glob("*/*/socket-*")
    assert codes_of(rows_of(["tea"], spec)) == [None]
    assert not stale.exists()
    (engine,) = running_engines(top)
    engine.kill()  # and now with a socket of its own number in its very place
    assert codes_of(rows_of(["soil"], spec)) == [None]


def test_an_unused_engine_ends_and_leaves_nothing(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults(constants={"keeper._IDLE_S": 2.0})
    rows_of(["tea"], spec)
    for engine in running_engines(top):
        await_end(engine)
    assert list(top.iterdir()) == []


def test_an_unused_engine_makes_room_for_another_model(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults(constants={"keeper.RETIRE_S": 3.0})
    rows_of(["tea"], spec)
    (first,) = running_engines(top)
    rows_of(["tea"], replace(spec, max_batch_tokens=64))
    await_end(first)
    (second,) = running_engines(top)
    assert second.pid != first.pid


def test_the_memory_of_a_gpu_is_free_when_the_next_model_s_engine_starts(
    encoder: str, faults: Faults, top: Path
) -> None:
    faults(constants={"keeper.RETIRE_S": 3.0})
    spec = make_spec(task="feature-extraction", model=encoder, precision="float32")
    rows_of(["red tea"], spec)
    (first,) = running_engines(top)
    (ready,) = top.glob("*/*/ready.json")
    told = json.loads(ready.read_text())
    ready.write_text(json.dumps({**told, "name": told["name"].replace(":cpu/", ":cuda:0/")}))
    rows_of(["red tea"], replace(spec, max_tokens=9))
    (second,) = running_engines(top)
    assert first.pid != second.pid
