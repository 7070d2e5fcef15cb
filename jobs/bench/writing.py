"""The same prompts through gristmill's engine and through transformers, side by side in one run.

Every contender gets the same token ids, the same model in the same precision, greedy answers and the same longest
answer, and all cores. Tokens are counted from what each has written: in half precision answers differ a little.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.corpus import docstrings
from jobs.bench.texts import take_texts
from jobs.errors import UserError
from jobs.settings import Settings
from udfs.errors import ModelError
from udfs.executor import usable_cores
from udfs.generation.loading import find_ends
from udfs.generation.vllm import VllmDecoder, load_vllm, takes_vllm
from udfs.local import LocalEngine
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.loading import load_transformer
from udfs.model.precision import DevicePlan
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.text_generation import make_asker
from udfs.tasks.writing_options import WritingOptions
from udfs.wire.items import Items

_BATCH = 32
_SINGLY = 64  # prompts that are written one at a time; more would take longer than all the rest and say the same
_CPU_BATCH_TOKENS = 512  # as many as gristmill has on a CPU


@dataclass(frozen=True)
class Way:
    """One way to write the answers; `run` returns the lengths of all of them, in tokens."""

    name: str
    run: Callable[[], list[int]]


@dataclass(frozen=True)
class WritingFigure:
    """A contender's medians over the rounds; `ratio` is how many times its tokens/s gristmill has."""

    name: str
    seconds: float
    written: int
    tokens_per_s: float
    ratio: float


def run_writing_bench(
    settings: Settings, *, rows: int, rounds: int, texts: str, json_path: Path | None, console: Console
) -> list[WritingFigure]:
    """Time every contender and print the table.

    Args:
        settings: The job: its task, model, prompts and longest answer.
        rows: How many texts.
        rounds: How often each contender runs; gristmill runs once before, so that its engine is warm.
        texts: `input`, the job's own; `docstrings` or `short`, of the installed packages, for every column.
        json_path: Where to write the figures too.

    Raises:
        UserError: There is nothing to write about, or the job draws its answers.
    """
    spec = replace(settings.spec(), dedupe=False, overflow="truncate", chunk_overlap=0)  # a prompt a text
    if spec.options.engine == "auto":  # ours, where vLLM is installed too
        spec = replace(spec, options=replace(spec.options, engine="transformers"))
    options: WritingOptions = spec.options
    if options.temperature or options.num_beams > 1 or options.form or options.stop:
        raise UserError("the benchmark compares greedy answers; leave temperature, num_beams, stop, schema and choices")
    files = open_model_of(spec)
    items = make_task(spec, files).tokenize(take_prompts(settings, texts, rows)).items
    shuffled = np.random.default_rng(0).permutation(len(items))  # the order in which rows arrive
    items = items.take(shuffled)
    console.print(
        f"{len(items):,} prompts, {items.lengths.mean():.0f} tokens on average ({items.lengths.min()} to "
        f"{items.lengths.max()}), answers of at most {spec.options.max_new_tokens}, {spec.task} by {spec.model}",
        soft_wrap=True,
    )
    with LocalEngine(spec) as engine:
        engine.forward(items.take(np.arange(min(8, len(items)))))
        precision = engine.model.name.split("/")[1]
        ways = [Way("gristmill", lambda: _write(engine, items)), *_others(spec, files, items, precision)]
        seconds, written = _time_rounds(ways, rounds, console)
    figures = _make_figures(seconds, written)
    console.print(_make_table(figures))
    if json_path:
        told = {"engine": engine.model.name, "rows": len(items), "prompt_tokens": len(items.ids), "rounds": rounds}
        json_path.write_text(json.dumps({**told, "figures": [asdict(f) for f in figures]}, indent=2) + "\n")
    return figures


def take_prompts(settings: Settings, texts: str, rows: int) -> list[str]:
    """What the model of a job that writes is asked of its texts."""
    if texts == "input":
        return take_texts(settings, texts, rows)
    found, ask = docstrings(rows, first_line=texts == "short"), make_asker(settings.spec())
    if ask is None:
        return found
    rendered = (ask(dict.fromkeys(settings.text_columns(), text))[0] for text in found)
    return [text for text in rendered if text]


def _write(engine: LocalEngine, items: Items) -> list[int]:
    return [len(answer.ids) if answer else 0 for answer in engine.forward(items).written or []]


def _others(spec: ScoreSpec[WritingOptions], files: ModelFiles, items: Items, precision: str) -> list[Way]:
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    both = bool(files.config.get("is_encoder_decoder"))
    kind = "AutoModelForSeq2SeqLM" if both else "AutoModelForCausalLM"
    model = load_transformer(kind, files, device=device, precision=precision, attention="sdpa")
    prompts = np.split(items.ids, items.offsets[1:-1])
    ends = find_ends(model)
    few = prompts[:_SINGLY]  # any of them: they are shuffled
    singly = "model.generate, one at a time" + (f" ({len(few)} of the prompts)" if len(few) < len(prompts) else "")
    ways = [
        Way(singly, lambda: _generate(model, few, 1, spec, ends)),
        Way(f"model.generate, batches of {_BATCH}", lambda: _generate(model, prompts, _BATCH, spec, ends)),
    ]
    if not both:
        ways.append(
            Way("transformers' continuous batching", lambda: _generate_continuously(model, prompts, spec, ends))
        )
        ways += load_vllm_way(spec, files, prompts, DevicePlan(device, precision, "as gristmill"))
    return ways


def load_vllm_way(
    spec: ScoreSpec[WritingOptions], files: ModelFiles, prompts: list[np.ndarray], plan: DevicePlan
) -> list[Way]:
    """vLLM, by itself, where it is installed for this device; nothing where it is not or does not load."""
    try:
        if not takes_vllm(replace(spec.options, engine="vllm"), files, plan):
            return []
        decoder = load_vllm(spec, files, plan, cores=usable_cores())
    except ModelError:
        return []
    return [Way("vLLM", lambda: _write_by_vllm(decoder, prompts))]


def _write_by_vllm(decoder: VllmDecoder, prompts: list[np.ndarray]) -> list[int]:
    waiting, lengths = list(prompts), [0]
    while waiting or len(decoder):
        while waiting and decoder.is_hungry():
            decoder.add(None, waiting.pop())
        lengths += [len(sequence.ids) for sequence in decoder.step()]
    return lengths


def _generate(
    model: Any, prompts: list[np.ndarray], size: int, spec: ScoreSpec[WritingOptions], ends: frozenset[int]
) -> list[int]:
    """In the order of arrival; padded on the left, as decoders want it, or on the right for an encoder."""
    import torch

    both, lengths = model.config.is_encoder_decoder, []
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        width = max(map(len, batch))
        ids, mask = np.zeros((len(batch), width), dtype=np.int64), np.zeros((len(batch), width), dtype=np.int64)
        for row, prompt in enumerate(batch):
            where = slice(0, len(prompt)) if both else slice(width - len(prompt), width)
            ids[row, where], mask[row, where] = prompt, 1
        found = model.generate(
            input_ids=torch.from_numpy(ids).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            max_new_tokens=spec.options.max_new_tokens,
            do_sample=False,
        )
        lengths += [_count(row, ends) for row in found[:, 1 if both else width :].tolist()]
    return lengths


def _generate_continuously(
    model: Any, prompts: list[np.ndarray], spec: ScoreSpec[WritingOptions], ends: frozenset[int]
) -> list[int]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(
        max_new_tokens=spec.options.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends, default=0),
    )
    batching = ContinuousBatchingConfig()
    if model.device.type == "cpu":  # it would size its cache by the host's memory; and slows down with more at once
        blocks = _BATCH * -(-(max(map(len, prompts)) + spec.options.max_new_tokens) // batching.page_size)
        batching = ContinuousBatchingConfig(
            num_blocks=blocks, max_batch_tokens=_CPU_BATCH_TOKENS, max_requests_per_batch=_BATCH
        )
    found = model.generate_batch(
        [prompt.tolist() for prompt in prompts], generation_config=config, continuous_batching_config=batching
    )
    if len(found) != len(prompts):
        raise RuntimeError(f"it answered {len(found)} of {len(prompts)} prompts")
    return [_count(answer.generated_tokens, ends) for answer in found.values()]


def _count(ids: list[int], ends: frozenset[int]) -> int:
    return next((place for place, token in enumerate(ids) if token in ends), len(ids))


def _time_rounds(ways: list[Way], rounds: int, console: Console) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each round, and tokens written in one; a way that fails is told and left out."""
    import torch

    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    written: dict[str, int] = {}
    for number in range(rounds):
        for way in ways:
            if way.name not in seconds:
                continue
            torch.set_num_threads(1 if way.name == "gristmill" else usable_cores())
            try:
                with console.status(f"round {number + 1} of {rounds}: {way.name}"):
                    began = time.perf_counter()
                    written[way.name] = sum(way.run())
                    seconds[way.name].append(time.perf_counter() - began)
                took = f"{seconds[way.name][-1]:.1f} s, {written[way.name]:,} tokens"
                console.print(f"round {number + 1}, {way.name}: {took}", style="dim")
            except Exception as error:
                if way.name == "gristmill":
                    raise
                console.print(f"{way.name} fails here: {type(error).__name__}: {str(error).splitlines()[:1]}")
                del seconds[way.name]
    return seconds, written


def _make_figures(seconds: dict[str, list[float]], written: dict[str, int]) -> list[WritingFigure]:
    ours, rate = seconds["gristmill"], written["gristmill"]
    figures = []
    for name, took in seconds.items():
        ratio = statistics.median((rate / a) / (written[name] / b) for a, b in zip(ours, took, strict=True))
        median = statistics.median(took)
        figures.append(WritingFigure(name, median, written[name], written[name] / median, ratio))
    return figures


def _make_table(figures: list[WritingFigure]) -> Table:
    table = Table("contender", box=None, pad_edge=False)
    for name in ("seconds", "tokens written", "tokens/s", "gristmill's tokens/s"):
        table.add_column(name, justify="right")
    for f in figures:
        table.add_row(f.name, f"{f.seconds:.1f}", f"{f.written:,}", f"{f.tokens_per_s:,.0f}", f"{f.ratio:.2f} times")
    return table
