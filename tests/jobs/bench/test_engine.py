from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from jobs.bench import engine as bench_engine
from jobs.bench.engine import _run_job, _time_rounds
from jobs.bench.floor import count_arithmetic, measure_peak, run_forward
from jobs.bench.shapes import make_shape
from jobs.errors import UserError
from tests.conftest import MINILM, ROOT
from tests.models import make_encoder
from tests.processes import without_spark
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.worker import scoring
from udfs.worker.scoring import prepare

WINDOWS = [pa.array(texts) for texts in (["red kettle", "tea"], ["dog", "a cat"], ["lamp"])]


@pytest.mark.long
def test_the_engine_is_measured_without_spark_and_without_java(tmp_path: Path) -> None:
    env = without_spark(tmp_path)
    told = tmp_path / "figures.json"
    command = ["bench", "conf/embeddings.yaml", "--engine", "--texts", "short", "--rows", "60", "--rounds", "1"]
    code = "from jobs import cli; from jobs.bench import engine; engine._ROUND_S = 0.5; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--json", str(told)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of the peak" in " ".join(done.stdout.split())
    figures = json.loads(told.read_text())
    assert figures["rows"] == 60
    assert figures["engine"].endswith(("packed", "padded"))
    assert set(figures["shares"]) == {"tokenize", "wait", "forward", "answer"}
    assert 0 < figures["forward_mfu"] < 1.5
    assert figures["tokens_per_s"] == pytest.approx(figures["tokens"] / figures["job_s"])


def test_the_arithmetic_of_a_bert_is_the_formulas() -> None:
    arithmetic = count_arithmetic(open_model(MINILM))  # 6 layers, 384 wide, 4 times that in between
    assert arithmetic.of(np.array([10, 20])) == 30 * 24 * 6 * 384**2 + (100 + 400) * 4 * 6 * 384


@pytest.mark.parametrize(("kind", "linear"), [("Bert", 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)), ("ModernBert", None)])
def test_the_arithmetic_of_other_widths_is_counted(tmp_path: Path, kind: str, linear: int | None) -> None:
    counted = count_arithmetic(open_model(make_encoder(tmp_path, kind=kind))).per_token
    expected = linear or 3 * 2 * (3 * 32 * 32 + 32 * 32 + 32 * 128 + 64 * 32)
    assert counted == expected


def test_the_peak_is_that_of_a_processor() -> None:
    assert 1e9 < measure_peak("cpu", "float32") < 1e14


def test_a_random_model_of_a_shape_opens(tmp_path: Path) -> None:
    path = make_shape("minilm-l6", open_model(MINILM), tmp_path / "shape")
    assert count_arithmetic(open_model(path)) == count_arithmetic(open_model(MINILM))
    with pytest.raises(UserError, match="bert-base"):
        make_shape("bert-huge", open_model(MINILM), tmp_path / "other")


def test_the_forward_pass_alone_has_all_windows_before_it_waits_for_one(tmp_path: Path) -> None:
    spec = make_spec(task="feature-extraction", model=make_encoder(tmp_path))
    task = make_task(spec, open_model(spec.model))
    with LocalEngine(spec) as engine, _calls_of(engine) as calls:
        found = run_forward(engine, [prepare(window, spec, task) for window in WINDOWS])
    assert calls == ["submit"] * 3 + ["collect"] * 3
    assert [len(outputs.values) for outputs in found] == [2, 2, 1]


def test_the_job_that_is_timed_is_the_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(task="feature-extraction", model=make_encoder(tmp_path), window_rows=2)
    steps = ("read_window", "tokenize_part", "answer_texts", "finish", "make_task")
    task = make_task(spec, open_model(spec.model))
    before = [getattr(scoring, name) for name in steps]
    monkeypatch.setattr(scoring, "_PARTS_IN_FLIGHT", 3)
    with LocalEngine(spec) as engine, _calls_of(engine) as calls:
        shares = _run_job(engine, WINDOWS, spec, task)
    assert calls == ["submit"] * 3 + ["collect"] * 3
    assert all(share > 0 for share in shares.values())
    assert shares["wait"] + shares["answer"] < 1
    assert [getattr(scoring, name) for name in steps] == before


def test_rounds_that_are_short_have_more_passes_and_their_seconds_are_those_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_engine, "_ROUND_S", 1.0)
    now, passes = 0.0, {"fast": [], "cold": [], "slow": []}
    monkeypatch.setattr(bench_engine.time, "perf_counter", lambda: now)

    def way(name: str, pass_s: float, start_s: float = 0.0) -> bench_engine.Way:
        def run(count: int) -> None:
            nonlocal now
            now += count * pass_s + (0.0 if passes[name] else start_s)
            passes[name].append(count)

        return run

    ways = {"fast": way("fast", 0.125), "cold": way("cold", 0.125, start_s=0.5), "slow": way("slow", 1.5)}
    seconds, peaks = _time_rounds(ways, 2, lambda: 1.0, Console(quiet=True))
    assert passes == {"fast": [1, 10, 10, 10], "cold": [1, 2, 10, 10, 10], "slow": [1, 1, 1]}
    assert seconds == {"fast": [0.125, 0.125], "cold": [0.125, 0.125], "slow": [1.5, 1.5]}
    assert peaks == [1.0, 1.0]


@contextmanager
def _calls_of(engine: LocalEngine) -> Iterator[list[str]]:
    """What is asked of an engine, in order."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("submit", "collect"):
            call = getattr(engine, name)
            patched.setattr(engine, name, lambda given, name=name, call=call: (calls.append(name), call(given))[1])
        yield calls
