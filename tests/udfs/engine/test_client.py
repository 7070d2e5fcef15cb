"""What befalls an engine while it answers: who notices, what is lost (nothing), what it costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MINILM
from tests.engine_faults import read_lines
from tests.models import VOCABULARY, WORDS
from tests.processes import await_end, running_engines
from udfs.engine.local import LocalEngine
from udfs.errors import EngineError, ModelError
from udfs.scoring import score, score_with
from udfs.spec import ScoreSpec

HARMLESS = [word for word in WORDS if word != "poison"]
TEXTS = [" ".join((HARMLESS * 3)[start : start + 1 + start % 29]) + f" {start}" for start in range(60)]
Faults = Callable[..., Path]


def _rows(texts: list[str], spec: ScoreSpec) -> list[dict[str, Any]]:
    return [row for result in score([pa.array(texts)], spec) for row in result.to_pylist()]


def _codes(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["error"] and row["error"]["code"] for row in rows]


def _check_answers(rows: list[dict[str, Any]], texts: list[str], spec: ScoreSpec) -> None:
    """Rows without an error have the answers of an engine that nothing befalls."""
    with LocalEngine(spec) as engine:
        expected = [row for result in score_with(engine, [pa.array(texts)], spec) for row in result.to_pylist()]
    for row, sound in zip(rows, expected, strict=True):
        if row["error"] is None:
            np.testing.assert_allclose(row["embedding"], sound["embedding"], atol=1e-5)


@pytest.mark.parametrize(
    "way", ["exit", "segfault", "kill", "hang", "hang with Python's lock", "device is lost", "raise"]
)
def test_a_text_that_kills_the_engine_fails_alone_and_kills_none_again(
    way: str, spec: ScoreSpec, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = {"keeper._GRACE_S": 1.0}
    starts = faults(poison=VOCABULARY["poison"], way=way, constants=constants)
    # Small micro-batches, so that neighbours are running and waiting, and answered before and after.
    spec = replace(spec, batch_timeout_s=2, max_batch_tokens=128)
    texts = [*TEXTS[:30], "red poison", *TEXTS[30:]]
    rows = _rows(texts, spec)
    assert _codes(rows) == [None] * 30 + ["device_fault"] + [None] * 30
    _check_answers(rows, texts, spec)
    assert "poison" not in rows[30]["error"]["message"]
    deaths = len(read_lines(starts)) - 1
    # Once among others, once alone; once more where no word of it says that nobody else has killed it.
    assert deaths == {"raise": 0, "exit": 3, "kill": 3}.get(way, 2)
    again = _rows(["tea", "red poison", "soil"], spec)
    assert _codes(again) == [None, "device_fault", None]
    assert len(read_lines(starts)) - 1 == deaths
    assert again[0]["engine"] == rows[0]["engine"] or deaths


def test_a_token_that_the_model_does_not_know_fails_its_row_alone(
    encoder: str, spec: ScoreSpec, top: Path, tmp_path: Path
) -> None:
    """No fault is planted: on a CPU the model raises, on a GPU a device-side assert ends the engine."""
    path = tmp_path / "cut"
    shutil.copytree(encoder, path)
    weights = load_file(path / "model.safetensors")
    rows = weights["embeddings.word_embeddings.weight"]
    weights["embeddings.word_embeddings.weight"] = rows[:-1].contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": len(rows) - 1}))
    assert max(VOCABULARY, key=VOCABULARY.__getitem__) == "##9"
    texts = [*TEXTS[:9], "red x9", *TEXTS[9:18]]
    assert _codes(_rows(texts, replace(spec, model=str(path)))) == [
        "device_fault" if re.search(r"\d9|x9", text) else None for text in texts
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_workers_share_the_engine_of_a_gpu(top: Path) -> None:
    from jobs.corpus import docstrings

    texts = docstrings(4000)
    spec = ScoreSpec(task="feature-extraction", model=MINILM, window_rows=512)
    with ThreadPoolExecutor(4) as pool:
        rows = [row for found in pool.map(lambda part: _rows(texts[part::4], spec), range(4)) for row in found]
    assert _codes(rows) == [None] * 4000
    (name,) = {row["engine"] for row in rows}
    assert ":cuda:0/" in name


def test_several_texts_that_kill_are_told_apart_from_their_neighbours(spec: ScoreSpec, faults: Faults) -> None:
    """Five of about the same length, so that engines die on them one after the other."""
    faults(poison=VOCABULARY["poison"], way="segfault")
    bad = [7, 8, 40, 41, 42]
    texts = [" ".join([*HARMLESS, "poison", str(place)]) if place in bad else text for place, text in enumerate(TEXTS)]
    rows = _rows(texts, spec)
    assert [place for place, code in enumerate(_codes(rows)) if code == "device_fault"] == bad
    assert _codes(rows).count(None) == len(TEXTS) - len(bad)
    _check_answers(rows, texts, spec)


def test_a_text_that_kills_is_known_to_all_clients_at_once(spec: ScoreSpec, faults: Faults) -> None:
    starts = faults(poison=VOCABULARY["poison"], way="segfault")
    texts = [*TEXTS[:20], "red poison", *TEXTS[20:], "red poison"]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: _rows(texts, replace(spec, dedupe=False)), range(3)))
    for rows in found:
        assert [place for place, code in enumerate(_codes(rows)) if code] == [20, len(texts) - 1]
        assert {code for code in _codes(rows) if code} == {"device_fault"}
    # Two deaths find it out; another client may have sent its own copy among others before it was found.
    assert 3 <= len(read_lines(starts)) <= 5


def test_memory_that_becomes_less_and_less_costs_only_what_fits_no_more(spec: ScoreSpec, faults: Faults) -> None:
    faults(cap=500, shrinks_to=20, constants={"runner._MEMORY_PAUSE_S": 0.0})
    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    rows = _rows(texts, replace(spec, window_rows=60))
    lengths = [row["usage"]["input_tokens"] for row in rows]
    assert set(_codes(rows)) == {None, "out_of_memory"}
    assert all(length > 20 for length, code in zip(lengths, _codes(rows), strict=True) if code)
    assert _codes(rows).count(None) > 400
    _check_answers(rows, texts, spec)


@pytest.mark.parametrize("way", ["exit", "raise"])
def test_an_engine_that_fails_on_every_text_fails_the_job(way: str, spec: ScoreSpec, faults: Faults) -> None:
    starts = faults(poison=-1, way=way)
    reason = "died 5 times in succession" if way == "exit" else "fails on every text: IndexError: index out of range"
    with pytest.raises(EngineError, match=reason):
        _rows(TEXTS, spec)
    assert len(read_lines(starts)) == (5 if way == "exit" else 1)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("raise", "IndexError: index out of range in self"),
        ("segfault", r"ended before it was ready\. Its log says: Fatal Python error: Segmentation fault"),
        ("kill", r"ended before it was ready\. It left no word"),
    ],
)
def test_an_engine_that_does_not_start_is_told_with_its_last_words(
    way: str, reason: str, spec: ScoreSpec, faults: Faults
) -> None:
    starts = faults(at_start=way)
    with pytest.raises(EngineError, match=reason):
        _rows(TEXTS, spec)
    assert len(read_lines(starts)) == (1 if way == "raise" else 2)  # what ends without a word is tried again


def test_a_model_that_does_not_load_is_told_once_to_all_who_wait(
    spec: ScoreSpec, encoder: str, faults: Faults, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    (broken / "model.safetensors").write_bytes(b"no weights at all")
    starts = faults()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_rows, ["tea"], replace(spec, model=str(broken))) for _ in range(4)]
        for future in asked:
            with pytest.raises(ModelError, match="does not load"):
                future.result()
    assert len(read_lines(starts)) == 1


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
    assert _codes(rows) == [None] * len(texts)
    _check_answers(rows, texts, spec)
    assert len(read_lines(starts)) == 3


def test_an_engine_that_is_stopped_from_outside_is_replaced(
    spec: ScoreSpec, faults: Faults, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.engine.link._LOOK_S", 0.5)
    monkeypatch.setattr("udfs.engine.link._STANDSTILL_S", 2.0)
    starts = faults()

    def feed() -> Iterator[pa.Array]:
        for start in range(0, len(TEXTS), 10):
            if start == 40:  # by now it has answered
                (engine,) = running_engines(top)
                engine.send_signal(signal.SIGSTOP)
            yield pa.array(TEXTS[start : start + 10])

    spec = replace(spec, window_rows=10, batch_timeout_s=1)
    rows = [row for result in score(feed(), spec) for row in result.to_pylist()]
    assert _codes(rows) == [None] * len(TEXTS)
    assert len(read_lines(starts)) == 2


def test_clients_share_one_engine_and_each_gets_its_own_answers(spec: ScoreSpec, faults: Faults) -> None:
    starts = faults()
    mine = [[f"{text} {client}" for text in TEXTS for _ in range(5)] for client in range(4)]
    spec = replace(spec, window_rows=64, dedupe=False)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda texts: _rows(texts, spec), mine))
    for rows, texts in zip(found, mine, strict=True):
        assert _codes(rows) == [None] * len(texts)
        _check_answers(rows, texts, spec)
    assert len(read_lines(starts)) == 1
    assert len({row["engine"] for rows in found for row in rows}) == 1


_WORKER = """
import itertools, sys
import pyarrow as pa
from udfs.executor import executor_of
from udfs.scoring import score
from udfs.spec import ScoreSpec

spec = ScoreSpec(task="feature-extraction", model=sys.argv[1], precision="float32", window_rows=50)
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
    assert _codes(_rows(["tea"], spec)) == [None]
    assert not stale.exists()
    (engine,) = running_engines(top)
    engine.kill()  # and now with a socket of its own number in its very place
    assert _codes(_rows(["soil"], spec)) == [None]


def test_an_unused_engine_ends_and_leaves_nothing(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults(constants={"keeper._IDLE_S": 2.0})
    _rows(["tea"], spec)
    for engine in running_engines(top):
        await_end(engine)
    assert list(top.iterdir()) == []


def test_an_unused_engine_makes_room_for_another_model(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    faults(constants={"keeper._RETIRE_S": 3.0})
    _rows(["tea"], spec)
    (first,) = running_engines(top)
    _rows(["tea"], replace(spec, max_batch_tokens=64))
    await_end(first)
    (second,) = running_engines(top)
    assert second.pid != first.pid


def test_clients_that_stop_early_leave_the_engine_to_others(spec: ScoreSpec, faults: Faults) -> None:
    starts, threads = faults(), threading.active_count()
    spec = replace(spec, window_rows=20)
    with ThreadPoolExecutor(1) as pool:
        steady = pool.submit(_rows, TEXTS * 50, replace(spec, dedupe=False))
        for _ in range(100):
            stopped = score((pa.array(TEXTS) for _ in range(100)), spec)
            next(stopped)
            stopped.close()
        assert _codes(steady.result()) == [None] * 50 * len(TEXTS)
    assert len(read_lines(starts)) == 1
    assert threading.active_count() < threads + 20  # of a hundred clients


def test_a_model_is_found_from_where_the_worker_is(
    spec: ScoreSpec, encoder: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(encoder).parent)
    assert _codes(_rows(["tea"], replace(spec, model=f"./{Path(encoder).name}"))) == [None]


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


def test_at_the_deadline_what_is_unanswered_expires_even_if_the_engine_hangs(spec: ScoreSpec, faults: Faults) -> None:
    faults(poison=VOCABULARY["poison"], way="hang")
    _rows(["tea"], replace(spec, window_rows=30))  # so that there is an engine
    deadline = time.time() + 12
    spec = replace(spec, deadline=deadline, window_rows=30)
    texts = [*TEXTS, "red poison"]
    rows = _rows(texts, spec)
    assert time.time() < deadline + 30
    codes = _codes(rows)
    assert codes[-1] == "expired"
    assert set(codes) == {None, "expired"}
    _check_answers(rows, texts, replace(spec, deadline=None))
    late = [row for row in rows if row["error"]]
    assert {(row["usage"]["input_tokens"], row["embedding"], row["engine"]) for row in late} == {(0, None, None)}


def test_past_the_deadline_no_engine_is_started(spec: ScoreSpec, faults: Faults, top: Path) -> None:
    starts = faults()
    assert _codes(_rows(TEXTS, replace(spec, deadline=time.time() - 1))) == ["expired"] * len(TEXTS)
    assert read_lines(starts) == []


def test_a_place_that_cannot_be_used_is_told(spec: ScoreSpec, top: Path) -> None:
    top.write_text("in the way")
    with pytest.raises(EngineError, match=r"cannot be used: .*set TMPDIR"):
        _rows(["tea"], spec)


def test_a_directory_that_others_can_enter_is_refused(spec: ScoreSpec, top: Path) -> None:
    top.mkdir(mode=0o755)
    with pytest.raises(EngineError, match="only user"):
        _rows(["tea"], spec)
