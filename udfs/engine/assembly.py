"""An engine's parts, put together: the model, its budget, the scheduler and the lanes."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from udfs.engine.budget import Budget, measure_budget
from udfs.engine.model import Model
from udfs.engine.runner import Runner, Runs, plan_lanes
from udfs.engine.scheduler import ROUND_BATCHES, Scheduler
from udfs.engine.static import STATIC_TOKENS, StaticModel
from udfs.engine.writing import WritingRunner
from udfs.errors import EngineError, first_line
from udfs.generation.encoder_decoder import EncoderDecoder
from udfs.generation.loading import load_writer
from udfs.generation.plain import PlainWriter
from udfs.generation.vllm import VllmDecoder
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.memory import free_forgotten, is_out_of_memory, is_shared, name_gpu
from udfs.model.precision import plan_device
from udfs.spec import ScoreSpec
from udfs.wire.items import Items
from udfs.wire.journal import Journal
from udfs.wire.turns import take_turn
from udfs.wire.written import Written

_WRITING_TOKENS = (2048, 16384)  # of an encoder-decoder's micro-batch, on a CPU and on a GPU
_PARCEL_ITEMS_TOKENS = 16384  # of a parcel for a model that writes
_ANSWERS_OF_PATIENCE = 16  # a step of more sequences that runs out of memory costs what all have written
_TURN_S = 600.0  # for other engines to load; a third of what a start may take
_LOAD_PAUSES_S = (4.0, 20.0, 40.0)  # where others have the memory: about a minute, as for a row

MakeJournal = Callable[[int], Journal | None]


@dataclass(frozen=True)
class Engine:
    """What runs.

    Args:
        name: `host:pid:device/precision/…`.
        model: What lanes run.
        budget: Of its micro-batches.
        scheduler: Takes parcels.
        runner: Its lanes.
        lanes: How many.
        parcel_tokens: Tokens of a parcel that suit it.
    """

    name: str
    model: Runs
    budget: Budget
    scheduler: Scheduler
    runner: Runner
    lanes: int
    parcel_tokens: int


def assemble(
    spec: ScoreSpec,
    *,
    cores: int,
    gpu: str | None = None,
    start_at: int = 0,
    make_journal: MakeJournal = lambda _: None,
    model: Runs | None = None,
    budget: Budget | None = None,
    lanes: int | None = None,
) -> Engine:
    """Load a model and begin to work.

    Until it has the memory that it plans with, no other engine loads onto the same GPU.

    Args:
        spec: What is asked of which model.
        cores: CPU cores to use.
        gpu: Spark's address of the GPU.
        start_at: A smaller budget to begin with; 0 for none.
        make_journal: From a number of lanes to their journal.
        model: Something else to run than the spec's model.
        budget: None measures it.
        lanes: None takes what suits the device.

    Raises:
        ModelError: The model does not load, or is not of the task's kind.
        EngineError: Spark gave a GPU, but torch sees none; or memory is out, and stays so.
    """
    if model is not None:
        budget = budget or Budget(spec.max_batch_tokens or 1024, 384)
        return _run(model, budget, start_at, lanes or 1, 1, make_journal)

    def load() -> Engine:
        if spec.options.writes:
            return _assemble_writer(spec, cores=cores, gpu=gpu, start_at=start_at, make_journal=make_journal)
        files = open_model_of(spec)
        if files.is_static:
            return _assemble_static(spec, files, cores=cores, start_at=start_at, make_journal=make_journal)
        model = Model(spec, gpu=gpu)
        planned, threads = plan_lanes(on_cuda=model.on_cuda, cores=cores)
        many = lanes or planned
        measured = budget or measure_budget(model, lanes=many, threads=threads, fixed=spec.max_batch_tokens)
        return _run(model, measured, start_at, many, threads, make_journal, per_token=model.per_token)

    with take_turn(name_gpu(), wait_s=_TURN_S):
        return _load_patiently(load, spec.model)


def _load_patiently(load: Callable[[], Engine], name: str) -> Engine:
    """Load, and again a little later where memory is out and others have some.

    Raises:
        EngineError: Memory is still out, or nobody else has any.
    """
    for pause_s in (*_LOAD_PAUSES_S, None):
        try:
            return load()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = first_line(error)
        free_forgotten()  # out of the handler, whose exception holds what has been loaded
        if pause_s is None or not is_shared():
            break
        print(f"gristmill: {name} is loaded again in {pause_s:.0f} s, since memory is out: {told}", file=sys.stderr)
        time.sleep(pause_s)
    raise EngineError(
        f"memory is out as model {name!r} loads: {told}; end what else has the device's memory, or take a smaller model"
    )


def _assemble_writer(
    spec: ScoreSpec, *, cores: int, gpu: str | None, start_at: int, make_journal: MakeJournal
) -> Engine:
    plan = plan_device(spec.precision, gpu=gpu, writes=True)
    on_cuda = plan.device.startswith("cuda")
    shown = f"cuda:{gpu}" if gpu is not None and on_cuda else plan.device
    name = f"{platform.node()}:{os.getpid()}:{shown}/{plan.precision}"
    lanes, threads = plan_lanes(on_cuda=on_cuda, cores=cores)
    writer = load_writer(spec, plan, name=name, lanes=1 if on_cuda else lanes, cores=cores)
    if isinstance(writer, PlainWriter):
        return _run(writer, Budget(1, 1), 0, 1, cores, make_journal, parcel_tokens=_PARCEL_ITEMS_TOKENS)
    if isinstance(writer, EncoderDecoder):
        tokens = spec.max_batch_tokens or _WRITING_TOKENS[on_cuda]
        return _run(writer, Budget(tokens, tokens // 4), start_at, lanes, threads, make_journal)
    by_vllm = isinstance(writer[0], VllmDecoder)
    threads = cores if by_vllm else threads  # it has all of them, for its one lane
    shell = Shell(f"{name}/{'vllm' if by_vllm else 'packed'}")
    budget = Budget(writer[0].max_sequences, 1, _ANSWERS_OF_PATIENCE * spec.options.max_new_tokens)
    _start_at(budget, start_at)
    scheduler = Scheduler(budget, pad_multiple=0, lanes=len(writer), singly=True)
    journal = make_journal(len(writer))
    runner = WritingRunner(writer, shell, scheduler, budget, threads=threads, journal=journal)
    return Engine(shell.name, shell, budget, scheduler, runner, len(writer), _PARCEL_ITEMS_TOKENS)


def _assemble_static(
    spec: ScoreSpec, files: ModelFiles, *, cores: int, start_at: int, make_journal: MakeJournal
) -> Engine:
    many, threads = plan_lanes(on_cuda=False, cores=cores)
    tokens = spec.max_batch_tokens or STATIC_TOKENS
    return _run(StaticModel(spec, files), Budget(tokens, tokens), start_at, many, threads, make_journal)


def _run(
    model: Runs,
    budget: Budget,
    start_at: int,
    lanes: int,
    threads: int,
    make_journal: MakeJournal,
    *,
    per_token: bool = False,
    parcel_tokens: int | None = None,
) -> Engine:
    _start_at(budget, start_at)
    scheduler = Scheduler(budget, pad_multiple=model.pad_multiple, lanes=lanes, per_token=per_token)
    runner = Runner(model, scheduler, budget, lanes=lanes, threads=threads, journal=make_journal(lanes))
    parcel_tokens = parcel_tokens or ROUND_BATCHES // 2 * budget.max_batch_tokens
    return Engine(model.name, model, budget, scheduler, runner, lanes, parcel_tokens)


def _start_at(budget: Budget, tokens: int) -> None:
    if tokens:
        budget.start_at(tokens)


@dataclass
class Shell:
    """What a decoder's lane shows for a model; it steps, and runs no micro-batches."""

    name: str
    pad_multiple: int = 0
    width: int = 0

    def run(self, items: Items, indices: np.ndarray) -> tuple[list[Written], np.ndarray]:
        raise EngineError("a decoder runs no micro-batches")
