"""What an engine tells of itself while it works."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from tests.engine_rows import TEXTS, Faults, rows_of
from udfs.engine.assembly import assemble
from udfs.engine.parcels import Parcel
from udfs.engine.tally import StatusFile, Tally, Waiting, read_gpu_memory
from udfs.model.files import open_model_of
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.wire.home import Home, find_near


def test_an_engine_counts_its_batches_items_and_tokens_and_what_waits(spec: ScoreSpec) -> None:
    engine = assemble(spec, cores=1)
    items = make_task(spec, open_model_of(spec)).tokenize(TEXTS).items
    engine.scheduler.put(Parcel("one", 0, items))
    next(engine.scheduler.answers("one"))
    tally, waiting = engine.scheduler.look()
    engine.scheduler.close()
    assert (tally.items, tally.tokens, tally.failed) == (len(items), len(items.ids), 0)
    assert tally.batched == len(items)
    assert 1 <= tally.batches <= len(items)
    assert tally.padded_tokens >= tally.tokens
    assert (waiting.items, waiting.tokens, waiting.running) == (0, 0, 0)
    assert waiting.budget == engine.budget.now


def test_what_waits_is_counted_wherever_it_waits(spec: ScoreSpec) -> None:
    engine = assemble(spec, cores=1)
    engine.scheduler.close()
    engine.runner.join(30)
    items = make_task(spec, open_model_of(spec)).tokenize(TEXTS[:10]).items
    engine.scheduler._closed = False
    engine.scheduler.put(Parcel("one", 0, items))
    engine.scheduler.put(Parcel("two", 0, items, alone=True))
    assert engine.scheduler.look()[1].items == 20
    engine.scheduler.take(wait=False)
    assert engine.scheduler.look()[1].tokens < 2 * len(items.ids)


def test_a_status_is_written_where_it_is_new_and_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    tally, home = Tally(), Home(tmp_path)
    status = StatusFile(home, {"name": "here:1:cpu/x/y", "number": 1}, lambda: (tally, Waiting(3, 30, 1, 1024)))
    status.write()
    told = home.read("status.json")
    assert told is not None
    assert told["waiting"] == {"items": 3, "tokens": 30, "running": 1, "budget": 1024}
    (tmp_path / "status.json").unlink()
    status.write()
    assert home.read("status.json") is None  # nothing was new
    tally.add(items=2, tokens=9)
    status.write()
    assert (home.read("status.json") or {})["tokens"] == 9
    tally.add(items=1)
    StatusFile(Home(tmp_path / "gone"), {}, lambda: (tally, Waiting(0, 0, 0, 1))).write()


def test_no_memory_is_told_of_a_gpu_that_nobody_uses() -> None:
    assert read_gpu_memory() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_is_told_in_bytes() -> None:
    torch.zeros(1, device="cuda")
    told = read_gpu_memory()
    assert told is not None
    assert 0 < told["reserved"] <= told["used"] <= told["total"]


@pytest.mark.long
def test_a_running_engine_keeps_its_status_beside_its_socket(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults()
    rows = rows_of(TEXTS, spec)
    assert len(rows) == len(TEXTS)
    (home,) = find_near()
    until = time.monotonic() + 10
    while (told := home.read("status.json") or {}).get("items", 0) < len(TEXTS) and time.monotonic() < until:
        time.sleep(0.1)
    assert told["items"] == len(TEXTS)
    assert told["tokens"] == sum(row["usage"]["input_tokens"] for row in rows)
    request = json.loads((home / "request.json").read_text())
    assert request["executor"]["pid"] == os.getpid()
