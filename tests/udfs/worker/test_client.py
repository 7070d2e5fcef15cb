"""Clients of one engine: what each of them gets, whatever befalls the engine meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.conftest import MINILM
from tests.engine_faults import read_lines
from tests.engine_rows import TEXTS, Faults, check_answers, codes_of, rows_of
from tests.models import VOCABULARY
from tests.processes import running_engines
from udfs.executor import executor_of
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.client import EngineClient
from udfs.worker.scoring import score


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_workers_share_the_engine_of_a_gpu(top: Path) -> None:
    from jobs.bench.corpus import docstrings

    texts = docstrings(4000)
    spec = make_spec(task="feature-extraction", model=MINILM, window_rows=512)
    with ThreadPoolExecutor(4) as pool:
        rows = [row for found in pool.map(lambda part: rows_of(texts[part::4], spec), range(4)) for row in found]
    assert codes_of(rows) == [None] * 4000
    (name,) = {row["engine"] for row in rows}
    assert ":cuda:0/" in name


@pytest.mark.long
def test_an_engine_that_somebody_kills_costs_no_row(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    starts = faults()
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]

    def feed() -> Iterator[pa.Array]:
        for start in range(0, len(texts), 100):
            if start in (500, 1700):
                (engine,) = running_engines(top)
                engine.send_signal(signal.SIGKILL)
            yield pa.array(texts[start : start + 100])

    spec = replace(spec, window_rows=200, max_batch_tokens=256)
    rows = [row for result in score(feed(), spec) for row in result.to_pylist()]
    assert codes_of(rows) == [None] * len(texts)
    check_answers(rows, texts, spec)
    assert len(read_lines(starts)) == 3


@pytest.mark.long
def test_an_engine_that_is_stopped_from_outside_is_replaced(
    spec: ScoreSpec, faults: Faults, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.worker.link._LOOK_S", 0.5)
    monkeypatch.setattr("udfs.worker.link._STANDSTILL_S", 2.0)
    starts = faults()

    def feed() -> Iterator[pa.Array]:
        for start in range(0, len(TEXTS), 10):
            if start == 40:  # by now it has answered
                (engine,) = running_engines(top)
                engine.send_signal(signal.SIGSTOP)
            yield pa.array(TEXTS[start : start + 10])

    spec = replace(spec, window_rows=10, batch_timeout_s=1)
    rows = [row for result in score(feed(), spec) for row in result.to_pylist()]
    assert codes_of(rows) == [None] * len(TEXTS)
    assert len(read_lines(starts)) == 2


@pytest.mark.long
def test_an_engine_that_is_stopped_holds_up_neither_who_comes_nor_who_leaves(
    spec: ScoreSpec, faults: Faults, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"_LOOK_S": 0.5, "_STANDSTILL_S": 2.0, "_END_S": 1.0}.items():
        monkeypatch.setattr(f"udfs.worker.link.{name}", seconds)
    starts, spec = faults(), replace(spec, batch_timeout_s=1)
    leaving = EngineClient(EngineId(spec, None, executor_of()))
    items = Items(np.array([2, 7, 3], dtype=np.int32), np.array([0, 3]))
    assert leaving.collect(leaving.submit(items)).faults.tolist() == [0]
    running_engines(top)[0].send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(leaving.__exit__, None, None, None)
        rows = pool.submit(rows_of, TEXTS[:9], spec)
        left.result(30)
        assert codes_of(rows.result(120)) == [None] * 9
    assert len(read_lines(starts)) == 2


def test_clients_share_one_engine_and_each_gets_its_own_answers(spec: ScoreSpec, faults: Faults) -> None:
    starts = faults()
    mine = [[f"{text} {client}" for text in TEXTS for _ in range(5)] for client in range(4)]
    spec = replace(spec, window_rows=64, dedupe=False)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda texts: rows_of(texts, spec), mine))
    for rows, texts in zip(found, mine, strict=True):
        assert codes_of(rows) == [None] * len(texts)
        check_answers(rows, texts, spec)
    assert len(read_lines(starts)) == 1
    assert len({row["engine"] for rows in found for row in rows}) == 1


@pytest.mark.long
def test_clients_that_stop_early_leave_the_engine_to_others(spec: ScoreSpec, faults: Faults) -> None:
    starts, threads = faults(), threading.active_count()
    spec = replace(spec, window_rows=20)
    with ThreadPoolExecutor(1) as pool:
        steady = pool.submit(rows_of, TEXTS * 50, replace(spec, dedupe=False))
        for _ in range(100):
            stopped = score((pa.array(TEXTS) for _ in range(100)), spec)
            next(stopped)
            stopped.close()
        assert codes_of(steady.result()) == [None] * 50 * len(TEXTS)
    assert len(read_lines(starts)) == 1
    assert threading.active_count() < threads + 20  # of a hundred clients


@pytest.mark.long
def test_at_the_deadline_what_is_unanswered_expires_even_if_the_engine_hangs(spec: ScoreSpec, faults: Faults) -> None:
    faults(poison=VOCABULARY["poison"], way="hang")
    rows_of(["tea"], replace(spec, window_rows=30))  # so that there is an engine
    deadline = time.time() + 12
    spec = replace(spec, deadline=deadline, window_rows=30)
    texts = [*TEXTS, "red poison"]
    rows = rows_of(texts, spec)
    assert time.time() < deadline + 30
    codes = codes_of(rows)
    assert codes[-1] == "expired"
    assert set(codes) == {None, "expired"}
    check_answers(rows, texts, replace(spec, deadline=None))
    late = [row for row in rows if row["error"]]
    assert {(row["usage"]["input_tokens"], row["embedding"], row["engine"]) for row in late} == {(0, None, None)}


def test_past_the_deadline_no_engine_is_started(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    starts = faults()
    assert codes_of(rows_of(TEXTS, replace(spec, deadline=time.time() - 1))) == ["expired"] * len(TEXTS)
    assert read_lines(starts) == []
