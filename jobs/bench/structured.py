"""What it costs to hold answers to a schema or to choices: the same prompts, held, and free with answers as long.

One decoder writes all, in turn: once with nothing drafted, so that both take as many calls of the model; and once with
drafts, where tokens that the grammar spells are written without a call of their own.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.writing import take_prompts
from jobs.errors import UserError
from jobs.settings import Settings
from udfs.executor import usable_cores
from udfs.generation.decoding import Decoder
from udfs.generation.loading import load_writer
from udfs.generation.picking import Picker
from udfs.model.files import open_model_of
from udfs.model.precision import plan_device
from udfs.tasks.registry import make_task
from udfs.tasks.writing_options import WritingOptions


@dataclass(frozen=True)
class StructuredFigures:
    """One way to write the answers; medians over the rounds.

    Args:
        held: To the job's schema or choices.
        drafts: Tokens are looked up, or forced, and several are written in a step.
        seconds, cpu_s: Of a round, by the clock and by the processor.
        written: Tokens.
        steps: Calls of the model.
        ratio, cpu_ratio: Tokens a second, and a CPU second, over those of free answers without drafts, round by round.
    """

    held: bool
    drafts: bool
    seconds: float
    cpu_s: float
    written: int
    steps: int
    ratio: float
    cpu_ratio: float


@dataclass(frozen=True)
class _Round:
    seconds: float
    cpu_s: float
    lengths: list[int]
    steps: int


# Held, drafts. The first is what others are told by; each second round has them the other way round.
_WAYS = ((False, False), (True, False), (False, True), (True, True))


def run_structured_bench(
    settings: Settings, *, rows: int, rounds: int, texts: str, json_path: Path | None, console: Console
) -> list[StructuredFigures]:
    """Write the same answers in each way, in turn, and print how they compare.

    Args:
        settings: The job; its answers are held to a schema or choices.
        rows: How many texts.
        rounds: How often each way writes them, after once that is not counted.
        texts: `input`, the job's own; `docstrings` or `short`, of the installed packages, for every column.
        json_path: Where to write the figures too.

    Raises:
        UserError: The job's answers are free, or are written otherwise than by a decoder of gristmill's own.
    """
    import torch

    spec = replace(settings.spec(), dedupe=False, overflow="truncate", chunk_overlap=0)
    if not spec.options.writes or not spec.options.form:
        raise UserError("--structured measures answers that are held to something; give the job a schema or choices")
    items = make_task(spec, open_model_of(spec)).tokenize(take_prompts(settings, texts, rows)).items
    prompts = np.split(items.ids, items.offsets[1:-1])
    torch.set_num_threads(usable_cores())
    writer = load_writer(spec, plan_device(spec.precision, writes=True), name="bench", lanes=1)
    if not isinstance(writer, list) or not isinstance(writer[0], Decoder):
        raise UserError(f"--structured measures our own decoders, and {spec.model} is written with otherwise")
    writing = _Writing(writer[0], spec.options.max_new_tokens)
    lengths = writing.write(prompts, None, drafts=False).lengths
    found: dict[tuple[bool, bool], list[_Round]] = {way: [] for way in _WAYS}
    for number in range(1, rounds + 1):
        for held, drafts in _WAYS[:: 1 if number % 2 else -1]:
            with console.status(f"round {number} of {rounds}: {_name(held, drafts)}"):
                found[held, drafts].append(writing.write(prompts, None if held else lengths, drafts=drafts))
    figures = [_make_figures(way, of, found[_WAYS[0]]) for way, of in found.items()]
    console.print(_make_table(figures))
    if json_path:
        json_path.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    return figures


class _Writing:
    """A decoder, with what it picks by and what it drafts by changed for each round."""

    def __init__(self, decoder: Decoder, longest: int) -> None:
        self._decoder, self._held, self._drafter = decoder, decoder._picker, decoder._drafter
        self._free = Picker(WritingOptions(max_new_tokens=longest), ends=frozenset(), tokenizer=None)

    def write(self, prompts: list[np.ndarray], lengths: list[int] | None, *, drafts: bool) -> _Round:
        """All answers, held, or free and of these lengths."""
        decoder: Any = self._decoder
        decoder._picker = self._held if lengths is None else self._free
        decoder._drafter = self._drafter if drafts else None
        told = [None if lengths is None else json.dumps({"max_new_tokens": max(1, n)}) for n in lengths or prompts]
        waiting, found, steps = list(range(len(prompts))), [0] * len(prompts), 0
        began, worked = time.perf_counter(), time.process_time()
        while waiting or len(decoder):
            while waiting and decoder.is_hungry() and decoder.add(waiting[0], prompts[waiting[0]], told[waiting[0]]):
                waiting.pop(0)
            for sequence in decoder.step():
                found[sequence.owner] = len(sequence.ids)
            steps += 1
        took = _Round(time.perf_counter() - began, time.process_time() - worked, found, steps)
        decoder._release(len(decoder._kept))  # so that no prompt is found in the cache by the next
        return took


def _name(held: bool, drafts: bool) -> str:
    return ("held" if held else "free") + (", drafts" if drafts else "")


def _make_figures(way: tuple[bool, bool], rounds: list[_Round], plain: list[_Round]) -> StructuredFigures:
    middle = statistics.median
    return StructuredFigures(
        *way,
        seconds=middle(r.seconds for r in rounds),
        cpu_s=middle(r.cpu_s for r in rounds),
        written=sum(rounds[0].lengths),
        steps=rounds[0].steps,
        ratio=middle(_rate(r, r.seconds) / _rate(p, p.seconds) for r, p in zip(rounds, plain, strict=True)),
        cpu_ratio=middle(_rate(r, r.cpu_s) / _rate(p, p.cpu_s) for r, p in zip(rounds, plain, strict=True)),
    )


def _rate(of: _Round, seconds: float) -> float:
    return sum(of.lengths) / seconds


def _make_table(figures: list[StructuredFigures]) -> Table:
    table = Table("answers", box=None, pad_edge=False, caption="as long; medians of the rounds")
    for name in ("seconds", "CPU s", "tokens", "steps", "tokens/s", "tokens/s, times", "a CPU s, times"):
        table.add_column(name, justify="right")
    for f in figures:
        counts = f"{f.written:,}", f"{f.steps:,}", f"{f.written / f.seconds:,.0f}"
        table.add_row(
            _name(f.held, f.drafts),
            f"{f.seconds:.1f}",
            f"{f.cpu_s:.1f}",
            *counts,
            f"{f.ratio:.2f}",
            f"{f.cpu_ratio:.2f}",
        )
    return table
