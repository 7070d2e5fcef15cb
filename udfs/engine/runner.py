"""Lanes: threads that take micro-batches and run them, so that one is prepared while another is on the device.

On a CPU a lane computes with one thread and there are as many lanes as cores: no thread of a matrix product waits for
another. On a GPU two lanes share the device: one launches while the other fetches.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

import numpy as np

from udfs.engine.budget import Budget
from udfs.engine.causes import is_device_lost
from udfs.engine.cutting import batch_tokens
from udfs.engine.parcels import MicroBatch
from udfs.engine.scheduler import Scheduler
from udfs.errors import EngineError, as_exception
from udfs.model.memory import free_memory, is_out_of_memory, is_shared
from udfs.wire.faults import FAULTY, TOO_LARGE
from udfs.wire.items import Items
from udfs.wire.journal import Journal
from udfs.wire.written import Written

_CUDA_LANES = 2
_CPU_LANES = 16  # more of them would wait for Python's lock; above, a lane has several threads
_FAULTS_AT_FIRST = 16  # before any text has gone through: it is the model, not the texts
_FAULTS_IN_A_ROW = 1024  # after some have
_MEMORY_TRIES, _MEMORY_PAUSE_S = 4, 4.0  # each pause is twice the one before: an item is tried for a minute,
_KNOWN_S = 600.0  # but none that is as long as one that was in vain, for ten more
_TOLD_FAULTS = 20  # whose traceback is kept in the log


class Runs(Protocol):
    """What lanes run: a `Model`."""

    name: str
    pad_multiple: int
    width: int

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray | list[Written], np.ndarray | int]: ...


class Runner:
    """Runs a scheduler's micro-batches on a model until the scheduler is closed.

    Memory that runs out halves the budget, and the micro-batch is cut anew; an item that it does not do for even alone
    is tried again for a minute, while others run. A micro-batch that raises is run again item by item, and only an item
    that raises by itself fails. A device that is lost ends this process.

    Args:
        model: The loaded model.
        scheduler: Where micro-batches come from.
        budget: The one that the scheduler cuts by.
        lanes: Threads.
        threads: CPU threads of each.
        journal: Where running items are written down; None in a process that is nobody's engine.
    """

    def __init__(
        self,
        model: Runs,
        scheduler: Scheduler,
        budget: Budget,
        *,
        lanes: int,
        threads: int = 1,
        journal: Journal | None = None,
    ) -> None:
        self._model, self._scheduler, self._budget, self._journal = model, scheduler, budget, journal
        self._threads, self._faults, self._faults_in_a_row = threads, 0, 0
        self._sound = False  # something has gone through
        self._too_large, self._known_until = math.inf, 0.0  # tokens for which an item has waited in vain
        self._began: dict[int, float] = {}
        self._broke_at = math.inf
        self._lanes = [
            threading.Thread(target=self._run_lane, args=(lane,), name=f"gristmill-lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._lanes:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the lanes of a closed scheduler: one that computes as the process ends may abort it."""
        until = time.monotonic() + timeout_s
        for thread in self._lanes:
            thread.join(max(0.0, until - time.monotonic()))

    def slowest_s(self) -> float:
        """Seconds since the oldest of the running micro-batches began; 0 when none runs."""
        return time.monotonic() - min(self._began.copy().values(), default=time.monotonic())

    def broke_s(self) -> float:
        """Seconds since the engine gave up; negative while it works."""
        return time.monotonic() - self._broke_at

    def _run_lane(self, lane: int) -> None:
        import torch

        torch.set_num_threads(self._threads)
        try:
            self._work(lane)
        except BaseException as raised:  # noqa: BLE001 - a lane that ended in silence would let every client wait
            error = as_exception(raised)
            _tell(error)
            self._broke_at = time.monotonic()
            told = error if isinstance(error, EngineError) else EngineError(f"the engine broke: {told_in_short(error)}")
            self._scheduler.close(told)

    def _work(self, lane: int) -> None:
        """Run micro-batches until the scheduler is closed."""
        while (batch := self._scheduler.take()) is not None:
            self._run_next(lane, batch)

    def _run_next(self, lane: int, batch: MicroBatch) -> None:
        if self._journal:
            self._journal.begin(lane, [batch], self._budget.now)
        self._began[lane] = time.monotonic()
        answered, tell = self._run(batch)
        del self._began[lane]
        if self._journal:  # before another lane may begin what is to run alone
            self._journal.end(lane, answered)
        tell()

    def _run(self, batch: MicroBatch) -> tuple[int, Callable[[], None]]:
        """Run a micro-batch; returns how many items it is done with, and what the scheduler is to be told."""
        try:
            values, width = self._model.run(batch.round.items, batch.indices)
        except EngineError:
            raise
        except BaseException as error:  # noqa: BLE001 - what a model raises is its own business, and its items' fate
            return self._take_apart(batch, as_exception(error))
        self._note_sound(int(np.max(width)))
        self._budget.note_success(int(np.broadcast_to(width, len(batch.indices)).sum()))
        return len(batch.indices), lambda: self._scheduler.finish(batch, values, width)

    def _take_apart(self, batch: MicroBatch, error: Exception) -> tuple[int, Callable[[], None]]:
        single = len(batch.indices) == 1
        if is_out_of_memory(error):
            free_memory(error)
            tokens = batch_tokens(batch.lengths, self._model.pad_multiple)
            self._budget.shrink(tokens)
            if not (single and batch.alone):
                return 0, lambda: self._scheduler.retry(batch, alone=single)
            return self._postpone(batch, tokens, error)
        self._look_at(error)
        if not (single and batch.alone):
            return 0, lambda: self._scheduler.retry(batch, alone=True)
        self._count_fault(error)
        return 1, lambda: self._scheduler.fail(batch, FAULTY)

    def _postpone(self, batch: MicroBatch, tokens: int, error: Exception) -> tuple[int, Callable[[], None]]:
        """An item of so many tokens has run out of memory while nothing else ran: it waits for others, or fails."""
        known = not batch.tries and tokens >= self._too_large and time.monotonic() < self._known_until
        if not known and batch.tries < _MEMORY_TRIES and is_shared():
            pause_s = _MEMORY_PAUSE_S * 2**batch.tries
            return 0, lambda: self._scheduler.retry(batch, alone=True, after_s=pause_s)
        if not known:
            self._too_large, self._known_until = tokens, time.monotonic() + _KNOWN_S
        self._count_fault(error)
        return 1, lambda: self._scheduler.fail(batch, TOO_LARGE)

    def _note_sound(self, tokens: int) -> None:
        """An item of so many tokens has gone through."""
        self._faults_in_a_row, self._sound = 0, True
        if tokens >= self._too_large:
            self._too_large = math.inf

    def _look_at(self, error: Exception) -> None:
        """Tell what a model raised, and end with a device that is lost: nothing runs in this process any more."""
        if self._faults < _TOLD_FAULTS:
            _tell(error)
        if is_device_lost(error):
            end_process("the device is lost")

    def _count_fault(self, error: Exception) -> None:
        """An item fails for good.

        Raises:
            EngineError: One after the other does: it is not the items.
        """
        self._faults, self._faults_in_a_row = self._faults + 1, self._faults_in_a_row + 1
        if self._faults_in_a_row >= (_FAULTS_IN_A_ROW if self._sound else _FAULTS_AT_FIRST):
            raise EngineError(f"the model fails on every text: {told_in_short(error)}")


def end_process(last_words: str) -> None:
    """End with something that nothing can use any more; clients start another engine, and look for what is to blame."""
    print(last_words, file=sys.stderr, flush=True)
    os._exit(70)


def plan_lanes(*, on_cuda: bool, cores: int) -> tuple[int, int]:
    """How many lanes, and CPU threads of each."""
    if on_cuda:
        return _CUDA_LANES, max(1, cores // _CUDA_LANES)
    lanes = min(cores, _CPU_LANES)
    return lanes, cores // lanes


def _tell(error: Exception) -> None:
    """Into the log, if the disk still takes it."""
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


def told_in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
