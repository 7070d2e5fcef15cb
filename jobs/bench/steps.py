"""A decoder's step by its parts: with a model that takes no time, what is left is ours; and with the job's own model.

Prompts arrive all the time: whoever ends makes room for the next, and as many are begun in a step as end in one.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.bench.lane import time_lane
from jobs.errors import UserError
from jobs.settings import Settings
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.drafting import Drafter
from udfs.generation.loading import load_writer
from udfs.generation.picking import Picker
from udfs.model.precision import plan_device
from udfs.spec import ScoreSpec
from udfs.tasks.text_generation import TextGenerationOptions
from udfs.tasks.writing_options import WritingOptions

PARTS = ("plan", "send", "call", "pick", "bookkeeping")
_SEQUENCES, _REAL_SEQUENCES = (64, 256, 512, 1024), (8, 64)
_PROMPT, _SHARED, _ANSWER, _STEP_TOKENS = 250, 200, 100, 4096
_REAL_ANSWER = 24
_STEPS, _REAL_STEPS = 200, 8  # that are measured
_TURNS = 3  # so many prompts to each sequence of a lane
_WORDS = 1024  # of the model that takes no time
_READ_ROWS = 12.0
_OTHERS = 7919
_SEED = 0


@dataclass(frozen=True)
class StepFigures:
    """One way to fill a decoder, measured.

    Args:
        model: `none` for the one that takes no time, with drafts that are looked for, or without, as on a GPU.
        sequences: Written at once.
        shared: Tokens that all prompts begin with.
        step_ms: Of the whole step.
        parts_ms: Of its parts; `call` is the model's, on a GPU what it takes to launch it, and `pick` waits for it.
        device_ms: Of the GPU, by its own clock; None on a CPU.
        lane_ms: Of an engine's lane, between two steps; None where it was not measured.
        tokens_per_s: Written.
        read: Tokens of prompts a step.
    """

    model: str
    sequences: int
    shared: int
    step_ms: float
    parts_ms: dict[str, float]
    device_ms: float | None
    lane_ms: float | None
    tokens_per_s: float
    read: float


def run_steps_bench(settings: Settings, *, rounds: int, json_path: Path | None, console: Console) -> list[StepFigures]:
    """Measure steps and print their parts.

    Args:
        settings: The job: its model and how tokens are picked. Its input is not read; prompts are random tokens.
        rounds: So often each is measured; the middle one counts, by the time of its steps.
        json_path: Where to write the figures too.

    Raises:
        UserError: The job does not write, or not with a decoder of ours.
    """
    spec = settings.spec()
    if not spec.options.writes:
        raise UserError(f"--steps measures models that write, and {settings.score.task} reads; take --engine")
    figures = []
    for sequences, shared, drafts in itertools.product(_SEQUENCES, (0, _SHARED), (False, True)):
        with console.status(f"a model that takes no time, {sequences} sequences"):
            found = [_measure_none(sequences, shared, drafts) for _ in range(rounds)]
        figures.append(_middle(found))
    for sequences in _REAL_SEQUENCES:
        with console.status(f"{spec.model}, {sequences} sequences"):
            decoder = _load_real(spec, sequences)
            fill = _Fill(spec.model, sequences, 0, _REAL_ANSWER, _REAL_STEPS)
            found = [_measure(decoder, fill) for _ in range(rounds)]
        figures.append(_middle(found))
    console.print(_make_table(figures))
    if json_path:
        json_path.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    return figures


def _middle(found: list[StepFigures]) -> StepFigures:
    """The median by the time of a step; of an even number, the slower of the two in the middle."""
    return sorted(found, key=lambda f: f.step_ms)[len(found) // 2]


@dataclass(frozen=True)
class _Fill:
    """How a decoder is filled."""

    model: str
    sequences: int
    shared: int
    answer: int
    steps: int


class _NoModel:
    """Takes no time: logits that are there already, of random tokens."""

    def __init__(self, rows: int) -> None:
        import torch

        rng = np.random.default_rng(_SEED)
        self._logits, self._rows, self._first = torch.from_numpy(rng.random((1, 2 * rows, _WORDS), np.float32)), rows, 0

    def __call__(self, *, step: Any, logits_to_keep: Any, **_: Any) -> Any:
        for name in ("places", "spans"):  # as a layer asks for them
            getattr(step, name)
        self._first = (self._first + _OTHERS) % self._rows  # others in each step, so that no answer repeats itself
        return SimpleNamespace(logits=self._logits[:, self._first : self._first + len(logits_to_keep)])


def _measure_none(sequences: int, shared: int, drafts: bool) -> StepFigures:
    name = "none, looks for drafts" if drafts else "none"
    fill = _Fill(name, sequences, shared, _ANSWER, _STEPS)
    figures = _measure(_load_none(sequences, drafts=drafts), fill)
    prompts = list(itertools.islice(_prompts(fill), _TURNS * sequences))
    lane_ms = time_lane(_load_none(sequences, drafts=drafts), prompts, sequences=sequences)
    return replace(figures, lane_ms=lane_ms)


def _load_none(sequences: int, *, drafts: bool) -> Decoder:
    options = TextGenerationOptions(max_new_tokens=_ANSWER)
    return Decoder(
        _NoModel(_STEP_TOKENS + sequences),
        Picker(options, ends=frozenset(), tokenizer=None),
        Arena(2 * sequences * (_PROMPT + _ANSWER)),
        device="cpu",
        max_new_tokens=_ANSWER,
        max_sequences=sequences,
        step_tokens=_STEP_TOKENS,
        drafter=Drafter(read_rows=_READ_ROWS) if drafts else None,
    )


def _load_real(spec: ScoreSpec[WritingOptions], sequences: int) -> Decoder:
    spec = replace(spec, options=replace(spec.options, max_new_tokens=_REAL_ANSWER))
    writer = load_writer(spec, plan_device(spec.precision, writes=True), name="bench", lanes=1)
    if not isinstance(writer, list) or not isinstance(writer[0], Decoder):
        raise UserError(f"--steps measures decoders of gristmill's own, and {spec.model} is written with otherwise")
    writer[0].bound(sequences=sequences, step_tokens=max(sequences, writer[0].step_tokens))
    return writer[0]


def _prompts(fill: _Fill) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(_SEED)
    begin = rng.integers(_WORDS, size=fill.shared)
    while True:
        yield np.concatenate([begin, rng.integers(_WORDS, size=_PROMPT - fill.shared)]).astype(np.int32)


def _measure(decoder: Decoder, fill: _Fill) -> StepFigures:
    """Fill the decoder evenly, so that as many end in each step, and measure some steps then."""
    prompts, due = _prompts(fill), 0.0
    for _ in range(fill.answer):
        due += fill.sequences / fill.answer
        while due >= 1:
            decoder.add(None, next(prompts))
            due -= 1
        decoder.step()
    clock, written, read = _Clock(), 0, 0
    with clock.watching(decoder):
        for _ in range(fill.steps):
            while decoder.is_hungry():
                decoder.add(None, next(prompts))
            clock.step(decoder)
            written, read = written + decoder.gained, read + decoder.read
    decoder.drop(decoder.sequences)
    parts = {name: seconds / fill.steps * 1e3 for name, seconds in clock.parts().items()}
    step_ms = clock.seconds["step"] / fill.steps * 1e3
    rate = written / clock.seconds["step"]
    device_ms = clock.device_ms(fill.steps)
    return StepFigures(
        fill.model, fill.sequences, fill.shared, step_ms, parts, device_ms, None, rate, read / fill.steps
    )


class _Clock:
    """Seconds of a decoder's steps, by its methods."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("step", "_plan", "_run", "_model", "look", "take"), 0.0)
        self._events: list[tuple[Any, Any]] = []

    def watching(self, decoder: Any) -> ExitStack:
        """As long as this is open, what a decoder calls is timed."""
        stack = ExitStack()
        picker = decoder._picker
        watched = (decoder, "_plan"), (decoder, "_run"), (decoder, "_model"), (picker, "look"), (picker, "take")
        for owner, name in watched:
            call = getattr(owner, name)
            if name == "_model" and decoder._device.startswith("cuda"):
                call = self._by_device(call)
            stack.enter_context(mock.patch.object(owner, name, self._timed(name, call)))
        return stack

    def step(self, decoder: Decoder) -> None:
        self._timed("step", decoder.step)()

    def parts(self) -> dict[str, float]:
        s = self.seconds
        pick = s["look"] + s["take"]
        rest = s["step"] - s["_plan"] - s["_run"] - pick
        return dict(zip(PARTS, (s["_plan"], s["_run"] - s["_model"], s["_model"], pick, rest), strict=True))

    def device_ms(self, steps: int) -> float | None:
        if not self._events:
            return None
        return float(sum(begin.elapsed_time(end) for begin, end in self._events)) / steps

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed

    def _by_device(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A GPU's own clock around the model; steps that are recorded do not come by here."""
        import torch

        def watched(*args: Any, **options: Any) -> Any:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            found = call(*args, **options)
            end.record()
            self._events.append((begin, end))
            return found

        return watched


def _make_table(figures: list[StepFigures]) -> Table:
    table = Table("model", box=None, pad_edge=False, caption="medians of the rounds")
    for name in ("sequences", "prompts share", "step ms", *PARTS, "device", "lane", "tokens/s"):
        table.add_column(name, justify="right")
    for f in figures:
        shown = [f"{f.parts_ms[name]:.2f}" for name in PARTS]
        more = ["" if ms is None else f"{ms:.2f}" for ms in (f.device_ms, f.lane_ms)]
        counts = [str(f.sequences), str(f.shared)]
        table.add_row(f.model, *counts, f"{f.step_ms:.2f}", *shown, *more, f"{f.tokens_per_s:,.0f}")
    return table
