"""The engine against the floor of its device: no Spark, no Java, nothing but this process.

The job is the product's own: `udfs.worker.scoring.score_with`, with clocks put around its steps. Rounds of it, of the
forward pass alone and of sentence-transformers are interleaved.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from jobs.bench.contenders import sentence_transformers
from jobs.bench.corpus import docstrings
from jobs.bench.floor import Arithmetic, count_arithmetic, measure_peak, run_forward
from jobs.bench.shapes import make_shape
from jobs.errors import UserError
from jobs.settings import Settings
from udfs.engine.runner import plan_lanes
from udfs.executor import usable_cores
from udfs.local import LocalEngine
from udfs.model.files import open_model_of
from udfs.spec import ScoreSpec
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.registry import make_task
from udfs.tasks.scores import ScoringOptions
from udfs.tasks.task import Task
from udfs.tasks.text_classification import TextClassificationOptions
from udfs.worker import scoring
from udfs.worker.windows import cut_windows

_STEPS = ("tokenize", "wait", "forward", "answer")
_ROUND_S = 5.0  # a round of a way lasts so long at least

Way = Callable[[int], Any]  # does all texts so many times


class Clock:
    """Adds up the seconds of steps, whatever threads they run in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds = dict.fromkeys(_STEPS, 0.0)

    @contextmanager
    def at(self, step: str, owner: Any, name: str) -> Iterator[None]:
        """Count the seconds of an object's method, or a module's function, to a step."""
        call = getattr(owner, name)

        def timed(*args: Any, **about: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **about)
            finally:
                with self._lock:
                    self.seconds[step] += time.perf_counter() - began

        with mock.patch.object(owner, name, timed):
            yield


@dataclass(frozen=True)
class EngineFigures:
    """What was measured; medians over the rounds.

    Args:
        engine: `host:pid:device/precision/packed`.
        model: As the job names it, or the shape.
        flops_per_token: Operations a real token, at these lengths.
        peak_flops: Of the device's matrix products, a second.
        job_s, forward_s: Of the whole job; of the forward pass alone, on items that are there; one pass over the texts.
        tokens_per_s: Real tokens of the job.
        job_mfu, forward_mfu: Share of the peak that real tokens' arithmetic has in each.
        padding: Share of tokens that were padding.
        shares: Of the job's time: the tokenizing thread, the caller that waits for outputs, the lanes' forward passes,
            the caller that makes answers. They overlap.
        idle: Share of the job's time that the forward pass alone would not need.
        times_as_long: Others' seconds over the job's.
        start_s: To load the model and find its budget.
    """

    engine: str
    model: str
    rows: int
    tokens: int
    flops_per_token: float
    peak_flops: float
    job_s: float
    forward_s: float
    tokens_per_s: float
    job_mfu: float
    forward_mfu: float
    padding: float
    shares: dict[str, float]
    idle: float
    times_as_long: dict[str, float]
    start_s: float


def run_engine_bench(
    settings: Settings,
    *,
    rows: int,
    rounds: int,
    texts: str,
    shape: str | None,
    json_path: Path | None,
    console: Console,
) -> EngineFigures:
    """Measure the engine and print the figures.

    Args:
        settings: The job: its task, model and maximum length. Its input is not read.
        rows: How many texts.
        rounds: How often each contender runs, after a warm-up; where that is over in no time, several passes a round.
        texts: `docstrings` (also for `input`) or `short`, from the installed packages.
        shape: Random weights of a real shape (`SHAPES`) with the model's tokenizer; None takes the model.
        json_path: Where to write the figures too.

    Raises:
        UserError: No such texts or shape; or the job writes, or its model is static.
    """
    if settings.spec().options.writes:
        raise UserError(
            f"--engine and --shape measure models that read, and {settings.score.task} writes: "
            "run `gristmill bench` without them, which measures jobs that write"
        )
    if texts not in ("input", "docstrings", "short"):
        raise UserError(f"--texts {texts}: choose one of docstrings, short")
    found = docstrings(rows, first_line=texts == "short")
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder:
        spec = settings.spec()
        options = spec.options
        if isinstance(options, ScoringOptions):
            options = replace(options, chunk_pooling="mean")
        if isinstance(options, FeatureExtractionOptions):  # it is the model that counts
            options = replace(options, quantization="float32", ranges=None)
        if isinstance(options, TextClassificationOptions):  # of pairs, the model on single texts
            options = replace(options, text_pair=None, truncation="longest_first")
        spec = replace(spec, options=options, template=None, dedupe=False, overflow="truncate", chunk_overlap=0)
        if shape:
            path = make_shape(shape, open_model_of(spec), Path(folder))
            spec = replace(spec, options=FeatureExtractionOptions(), model=path)
        figures = _measure(spec, found, rounds=rounds, name=shape or spec.model, console=console)
    console.print(_make_table(figures))
    if json_path:
        json_path.write_text(json.dumps(asdict(figures), indent=2) + "\n")
    return figures


def _measure(spec: ScoreSpec, texts: list[str], *, rounds: int, name: str, console: Console) -> EngineFigures:
    files = open_model_of(spec)
    if files.is_static:
        raise UserError(
            f"--engine measures products of matrices, and model {spec.model!r} is static, it has none: run "
            "`gristmill bench` without it"
        )
    task, arithmetic = make_task(spec, files), count_arithmetic(files)
    spec = replace(spec, window_rows=min(spec.window_rows, len(texts)))  # so that few repeated rows are not one window
    windows = list(cut_windows([pa.array(texts, pa.string())], window_rows=spec.window_rows))
    prepared = [scoring.prepare(window, spec, task) for window in windows]
    lengths = np.concatenate([p.items.lengths for p in prepared])
    began = time.perf_counter()
    with LocalEngine(spec) as engine:
        start_s = time.perf_counter() - began
        padded = sum(int(outputs.padded_tokens.sum()) for outputs in run_forward(engine, prepared))
        device, precision, _ = engine.model.name.split(":", 2)[2].split("/")
        others = sentence_transformers(spec, files, texts, lengths, precisions=(precision,))
        steps: list[dict[str, float]] = []
        ways = {other.name: _repeat(other.run) for other in others}
        ways["forward"] = lambda passes: run_forward(engine, prepared * passes)
        ways["job"] = lambda passes: steps.append(_run_job(engine, windows * passes, spec, task))
        torch_device = "cuda:0" if device.startswith("cuda") else "cpu"
        seconds, peaks = _time_rounds(ways, rounds, lambda: measure_peak(torch_device, precision), console)
        engine_name = engine.model.name
    return _make_figures(
        engine_name, name, len(texts), lengths, padded, arithmetic, peaks, seconds, steps[-rounds:], start_s
    )


def _run_job(engine: LocalEngine, windows: list[pa.Array], spec: ScoreSpec, task: Task) -> dict[str, float]:
    """The product's own way of these windows, by a task that is at hand; returns each step's share of the time."""
    clock, began = Clock(), time.perf_counter()
    with (
        mock.patch.object(scoring, "make_task", return_value=task),
        clock.at("tokenize", scoring, "read_window"),
        clock.at("tokenize", scoring, "tokenize_part"),
        clock.at("wait", engine, "collect"),
        clock.at("forward", engine.model, "run"),
        clock.at("answer", scoring, "answer_texts"),
        clock.at("answer", scoring, "finish"),
    ):
        for _ in scoring.score_with(engine, windows, spec):
            pass
    whole_s = time.perf_counter() - began
    return {step: seconds / whole_s for step, seconds in clock.seconds.items()}


def _repeat(run: Callable[[], Any]) -> Way:
    return lambda passes: [run() for _ in range(passes)]


def _time_rounds(
    ways: dict[str, Way], rounds: int, peak: Callable[[], float], console: Console
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of a pass of each way, and the device's peak, in each round: a machine that slows down slows all of them.

    A round of a way has as many passes as last `_ROUND_S`, which the warm-up finds: in a short one a fast device would
    wait for the first window more than for anything else.
    """
    import torch

    peaks: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    passes: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, run in ways.items():
            torch.set_num_threads(1 if name in ("forward", "job") else usable_cores())
            with console.status(f"round {number} of {rounds}: {name}"):
                if number:
                    seconds[name].append(_time(run, passes[name]) / passes[name])
                else:
                    passes[name] = _count_passes(run)
        if number:
            peaks.append(peak())
    return seconds, peaks


def _count_passes(run: Way) -> int:
    passes = 1
    while (took := _time(run, passes)) < _ROUND_S:
        passes = math.ceil(1.2 * passes * _ROUND_S / took)
    return passes


def _time(run: Way, passes: int) -> float:
    began = time.perf_counter()
    run(passes)
    return time.perf_counter() - began


def _make_figures(
    engine: str,
    model: str,
    rows: int,
    lengths: np.ndarray,
    padded: int,
    arithmetic: Arithmetic,
    peaks: list[float],
    seconds: dict[str, list[float]],
    steps: list[dict[str, float]],
    start_s: float,
) -> EngineFigures:
    tokens, flops = int(lengths.sum()), arithmetic.of(lengths)
    job, forward = (statistics.median(seconds[name]) for name in ("job", "forward"))

    def mfu(name: str) -> float:
        return statistics.median(flops / took / peak for took, peak in zip(seconds[name], peaks, strict=True))

    lanes, _ = plan_lanes(on_cuda=":cuda" in engine, cores=usable_cores())
    shares = {
        step: statistics.median(share[step] for share in steps) / (lanes if step == "forward" else 1) for step in _STEPS
    }
    others = {
        name: statistics.median(a / b for a, b in zip(took, seconds["job"], strict=True))
        for name, took in seconds.items()
        if name not in ("job", "forward")
    }
    idle = statistics.median(1 - a / b for a, b in zip(seconds["forward"], seconds["job"], strict=True))
    return EngineFigures(
        engine=engine,
        model=model,
        rows=rows,
        tokens=tokens,
        flops_per_token=flops / tokens,
        peak_flops=statistics.median(peaks),
        job_s=job,
        forward_s=forward,
        tokens_per_s=tokens / job,
        job_mfu=mfu("job"),
        forward_mfu=mfu("forward"),
        padding=1 - tokens / padded,
        shares=shares,
        idle=idle,
        times_as_long=others,
        start_s=start_s,
    )


def _make_table(f: EngineFigures) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    lines = [
        ("engine", f.engine),
        ("model", f.model),
        ("texts", f"{f.rows:,}, {f.tokens / f.rows:.0f} tokens on average"),
        ("operations a real token", f"{f.flops_per_token / 1e6:,.1f} M"),
        ("matrix peak of the device", f"{f.peak_flops / 1e12:,.2f} T/s"),
        ("whole job", f"{f.job_s:.2f} s, {f.tokens_per_s:,.0f} real tokens/s, {f.job_mfu:.0%} of the peak"),
        ("forward pass alone", f"{f.forward_s:.2f} s, {f.forward_mfu:.0%} of the peak"),
        ("all that is not the forward pass", f"{f.idle:.1%}"),
        ("padding", f"{f.padding:.1%}"),
        *((f"share of {step}", f"{share:.0%}") for step, share in f.shares.items()),
        *((f"{name} takes", f"{ratio:.2f} times as long") for name, ratio in f.times_as_long.items()),
        ("start", f"{f.start_s:.1f} s"),
    ]
    for name, value in lines:
        table.add_row(name, value)
    return table
