"""Items one at a time, once an engine has nothing else to do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine_rows import TEXTS, Faults, rows_of
from udfs.engine.budget import Budget
from udfs.engine.comparing import Comparer
from udfs.engine.parcels import Parcel
from udfs.engine.runner import Runner
from udfs.engine.scheduler import Scheduler
from udfs.executor import executor_of
from udfs.spec import ScoreSpec
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.process import ask_to_compare

ITEMS = Items(np.arange(60, dtype=np.int32), np.arange(0, 61, 3))  # 20 of three tokens


class Model:
    """Takes `seconds` for each micro-batch; keeps their sizes."""

    name, pad_multiple, width = "here:1:cpu/x/y", 1, 1

    def __init__(self, seconds: float = 0.002) -> None:
        self.seconds, self.sizes = seconds, list[int]()

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
        self.sizes.append(len(indices))
        time.sleep(self.seconds)
        return np.ones((len(indices), 1), np.float32), 3


def _engine(model: Any, *, lanes: int = 1) -> Scheduler:
    budget = Budget(1024, 1024)
    scheduler = Scheduler(budget, pad_multiple=1, lanes=lanes)
    Runner(model, scheduler, budget, lanes=lanes)
    return scheduler


def _score(scheduler: Scheduler) -> None:
    scheduler.put(Parcel("worker", 0, ITEMS))
    next(scheduler.answers("worker"))


def test_items_are_timed_one_at_a_time_once_for_each_run() -> None:
    scheduler = _engine(model := Model())
    _score(scheduler)
    model.sizes.clear()
    comparer = Comparer(scheduler, lanes=1)
    timed = comparer.measure("run", budget_s=5)
    assert set(model.sizes) == {1}
    assert len(timed) == len(ITEMS) - 1  # the first is to warm up
    assert all(one.tokens == 3 and 0.002 <= one.seconds < 1 for one in timed)
    _score(scheduler)
    assert comparer.measure("run", budget_s=5) == []
    assert comparer.measure("another", budget_s=5)
    scheduler.close()


def test_a_lane_of_several_has_a_share_of_the_cores() -> None:
    scheduler = _engine(Model(0.02), lanes=4)
    _score(scheduler)
    timed = Comparer(scheduler, lanes=4).measure("run", budget_s=5)
    assert 0.005 <= np.median([one.seconds for one in timed]) < 0.015
    scheduler.close()


def test_the_budget_ends_it_also_in_the_middle_of_an_item() -> None:
    scheduler = _engine(model := Model())
    _score(scheduler)
    model.seconds = 0.05
    began = time.monotonic()
    timed = Comparer(scheduler, lanes=1).measure("run", budget_s=0.2)
    assert time.monotonic() - began < 2
    assert 1 <= len(timed) <= 5
    _score(scheduler)
    model.seconds = 3
    began = time.monotonic()
    assert Comparer(scheduler, lanes=1).measure("next", budget_s=0.2) == []
    assert time.monotonic() - began < 2  # a model that writes is stopped; this one answers nobody
    scheduler.close()


def test_others_come_first() -> None:
    scheduler = _engine(model := Model())
    _score(scheduler)
    model.seconds = 0.3
    scheduler.put(Parcel("worker", 1, ITEMS))
    assert Comparer(scheduler, lanes=1).measure("run", budget_s=5) == []
    next(scheduler.answers("worker"))
    scheduler.close()


def test_an_item_that_fails_by_itself_is_not_counted() -> None:
    class Faulty(Model):
        broken = False

        def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
            if self.broken and items.ids[items.offsets[indices[0]]] == 0:
                raise ValueError("no")
            return super().run(items, indices)

    scheduler = _engine(model := Faulty())
    _score(scheduler)
    model.broken = True
    assert len(Comparer(scheduler, lanes=1).measure("run", budget_s=5)) in (len(ITEMS) - 2, len(ITEMS) - 1)
    scheduler.close()


@pytest.mark.long
def test_a_worker_asks_an_engine_that_is_there_and_starts_none(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    starts = faults()
    engine = EngineId(spec, None, executor_of(os.getpid()))
    assert ask_to_compare(engine, "run", budget_s=1) is None
    assert not starts.exists()
    rows = rows_of(TEXTS, spec)
    timed = ask_to_compare(engine, "run", budget_s=5)
    assert timed
    lengths = {row["usage"]["input_tokens"] for row in rows}
    assert {tokens for tokens, _ in timed} <= lengths
    assert ask_to_compare(engine, "run", budget_s=5) == []
    assert len(starts.read_text().splitlines()) == 1
