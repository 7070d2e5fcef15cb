"""The same rows through gristmill and through what people use instead, side by side in one run.

Every contender gets the same texts, the same model, the same threads and the same maximum length, and returns its
answers to Python. Rounds are interleaved, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from jobs.bench.contenders import Contender, pipeline, sentence_transformers
from jobs.bench.floor import run_forward
from jobs.bench.texts import take_texts
from jobs.errors import UserError
from jobs.increments.plan import Plan, score_frame
from jobs.settings import Settings
from jobs.spark.session import open_session
from udfs.executor import executor_of, usable_cores
from udfs.local import LocalEngine
from udfs.model.files import ModelFiles, open_model_of
from udfs.spec import ScoreSpec
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.registry import make_task
from udfs.tasks.task import Task
from udfs.tasks.text_classification import reads_pairs
from udfs.wire.home import EngineId
from udfs.worker.client import EngineClient
from udfs.worker.scoring import prepare, score


@dataclass(frozen=True)
class Figure:
    """A contender's medians over the rounds; `ratio` is how many times as fast gristmill is."""

    name: str
    seconds: float
    rows_per_s: float
    tokens_per_s: float
    real_share: float
    ratio: float


def run_bench(
    settings: Settings,
    *,
    rows: int,
    rounds: int,
    texts: str,
    spark: bool,
    json_path: Path | None,
    console: Console,
) -> list[Figure]:
    """Time every contender and print the table.

    Args:
        settings: The job: its task, model and maximum length.
        rows: How many texts.
        rounds: How often each contender runs, after one warm-up, in which engines load their model.
        texts: `input`, the job's own; `docstrings` or `short`, from the installed packages.
        spark: Run gristmill within Spark as well.
        json_path: Where to write the figures too.

    Raises:
        UserError: There is nothing to score.
    """
    if reads_pairs(settings.spec()):
        raise UserError(
            "bench compares nothing for pairs; `gristmill bench --engine` measures the model on single texts"
        )
    spec = replace(settings.spec(), template=None, dedupe=False)  # duplicates would come on top
    if isinstance(
        spec.options, FeatureExtractionOptions
    ):  # an int8 job measures its ranges; it is the model that counts
        spec = replace(spec, options=replace(spec.options, quantization="float32", ranges=None))
    rows_of_text = take_texts(settings, texts, rows)
    files = open_model_of(spec)
    task = make_task(spec, files)
    lengths = task.tokenize(rows_of_text).items.lengths
    console.print(
        f"{len(rows_of_text):,} texts, {lengths.sum() / len(rows_of_text):.0f} tokens on average, "
        f"{spec.task} by {spec.model}",
        soft_wrap=True,
    )
    with LocalEngine(spec) as engine:
        contenders = _make_contenders(spec, files, task, engine, rows_of_text, lengths)
        if spark:
            contenders.append(_on_spark(settings, spec, rows_of_text, contenders[-1].real_share))
        with EngineClient(EngineId(spec, None, executor_of())):  # its engine stays, however long others take
            seconds = _time_rounds(contenders, rounds, console)
    figures = _make_figures(contenders, seconds, rows=len(rows_of_text), tokens=int(lengths.sum()))
    console.print(_make_table(figures))
    _print_overhead(figures, console)
    if json_path:
        machine = {"cpu": platform.processor() or platform.machine(), "engine": engine.model.name}
        told = {"machine": machine, "rows": len(rows_of_text), "tokens": int(lengths.sum()), "rounds": rounds}
        json_path.write_text(json.dumps({**told, "figures": [asdict(f) for f in figures]}, indent=2) + "\n")
    return figures


def _make_contenders(
    spec: ScoreSpec, files: ModelFiles, task: Task, engine: LocalEngine, texts: list[str], lengths: np.ndarray
) -> list[Contender]:
    window = pa.array(texts, pa.string())
    prepared = [prepare(window.slice(i, spec.window_rows), spec, task) for i in range(0, len(texts), spec.window_rows)]
    padded = sum(int(outputs.padded_tokens.sum()) for outputs in run_forward(engine, prepared))
    real = int(lengths.sum()) / padded
    found = [Contender("one row at a time, same precision", lambda: _one_by_one(engine, task, texts), 1.0)]
    found += pipeline(spec, files, task, texts, lengths)
    found += sentence_transformers(spec, files, texts, lengths)
    found.append(Contender("forward pass alone", lambda: run_forward(engine, prepared), real, threads=1))
    found.append(Contender("gristmill", lambda: list(score([window], spec)), real))
    return found


def _one_by_one(engine: LocalEngine, task: Task, texts: list[str]) -> None:
    for text in texts:
        engine.model.run(task.tokenize([text]).items, np.array([0]))


def _on_spark(settings: Settings, spec: ScoreSpec, texts: list[str], real: float) -> Contender:
    spark = open_session(settings.spark)
    frame = spark.createDataFrame(pa.table({"text": texts})).cache()
    text = settings.score.model_copy(update={"text": "text"})
    job = settings.model_copy(
        update={
            "score": text,
            "output": settings.output.model_copy(update={"columns": []}),
            "batching": settings.batching.model_copy(update={"dedupe": False}),
        }
    )
    slots = spark.sparkContext.defaultParallelism
    plan = Plan(len(texts), max(slots, -(-len(texts) // spec.window_rows)))
    scored = score_frame(frame, job, plan)
    return Contender("gristmill in Spark", lambda: scored.write.format("noop").mode("overwrite").save(), real)


def _time_rounds(contenders: list[Contender], rounds: int, console: Console) -> dict[str, list[float]]:
    import torch

    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            torch.set_num_threads(contender.threads or usable_cores())
            with console.status(f"round {number} of {rounds}: {contender.name}"):
                began = time.perf_counter()
                contender.run()
                if number:
                    seconds[contender.name].append(time.perf_counter() - began)
    return seconds


def _make_figures(
    contenders: list[Contender], seconds: dict[str, list[float]], *, rows: int, tokens: int
) -> list[Figure]:
    ours = seconds["gristmill"]
    figures = []
    for contender in contenders:
        took = statistics.median(seconds[contender.name])
        ratio = statistics.median(a / b for a, b in zip(seconds[contender.name], ours, strict=True))
        figures.append(Figure(contender.name, took, rows / took, tokens / took, contender.real_share, ratio))
    return figures


def _make_table(figures: list[Figure]) -> Table:
    table = Table("contender", box=None, pad_edge=False)
    for name in ("seconds", "rows/s", "tokens/s", "real tokens", "time, gristmill = 1"):
        table.add_column(name, justify="right")
    for f in figures:
        table.add_row(
            f.name,
            f"{f.seconds:.1f}",
            f"{f.rows_per_s:,.0f}",
            f"{f.tokens_per_s:,.0f}",
            f"{f.real_share:.0%}",
            f"{f.ratio:.2f}",
        )
    return table


def _print_overhead(figures: list[Figure], console: Console) -> None:
    by_name = {figure.name: figure for figure in figures}
    forward = by_name["forward pass alone"].seconds
    for name in ("gristmill", "gristmill in Spark"):
        if name in by_name:
            console.print(f"all that is not the forward pass, {name}: {1 - forward / by_name[name].seconds:.1%}")
