"""The lane of a decoder: items come and go one by one, and each step of the model runs all that are there."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from udfs.engine.budget import Budget
from udfs.engine.causes import free_memory, is_out_of_memory
from udfs.engine.journal import Journal
from udfs.engine.runner import Runner, Runs
from udfs.engine.scheduler import FAULTY, TOO_LARGE, MicroBatch, Scheduler
from udfs.generation.decoding import Decoder


class WritingRunner(Runner):
    """Runs a scheduler's items on a decoder until the scheduler is closed.

    Memory that runs out halves the number of sequences. A step that raises has all of its items run again one by one,
    and only an item that raises by itself fails.

    Args:
        decoder: Writes.
        model: What the runner shows for a model.
        scheduler: Gives items singly.
        budget: In sequences.
        threads: CPU threads.
        journal: Where running items are written down; None in a process that is nobody's engine.
    """

    def __init__(
        self,
        decoder: Decoder,
        model: Runs,
        scheduler: Scheduler,
        budget: Budget,
        *,
        threads: int,
        journal: Journal | None = None,
    ) -> None:
        self._decoder, self._held = decoder, None
        decoder.max_sequences = budget.now
        super().__init__(model, scheduler, budget, lanes=1, threads=threads, journal=journal)

    _held: MicroBatch | None

    def _work(self, lane: int) -> None:
        while not self._scheduler.is_closed():
            if self._admit() and self._journal:
                self._journal.begin(lane, self._running(), self._budget.now)
            if len(self._decoder):
                self._began[lane] = time.monotonic()
                self._step(lane)
                del self._began[lane]
                self._drop_abandoned()

    def _running(self) -> Sequence[MicroBatch]:
        return [sequence.owner for sequence in self._decoder.sequences]

    def _admit(self) -> bool:
        """Begin items as long as there is room; waits for one where nothing is being written."""
        before = len(self._decoder)
        while True:
            batch = self._held or self._scheduler.take(wait=not len(self._decoder))
            self._held = None
            if batch is None:
                return len(self._decoder) > before
            prompt = batch.round.items.take(batch.indices).ids
            if not self._decoder.fits(len(prompt)):
                self._scheduler.fail(batch, TOO_LARGE)
            elif not self._decoder.add(batch, prompt):
                self._held = batch
                return len(self._decoder) > before

    def _step(self, lane: int) -> None:
        try:
            over = self._decoder.step()
        except Exception as error:  # noqa: BLE001 - what a model raises is its own business, and its items' fate
            self._take_all_apart(error)
            return
        if not over:
            return
        self._faults_in_a_row = 0
        if self._journal:  # before what is to run alone may begin
            self._journal.end(lane, len(over))
            if len(self._decoder):
                self._journal.begin(lane, self._running(), self._budget.now)
        for sequence in over:
            self._widest = max(self._widest, len(sequence.prompt))
            ran = len(sequence.prompt) - sequence.cached_tokens + len(sequence.ids)
            self._scheduler.finish(sequence.owner, [sequence.written()], np.array([ran]))

    def _drop_abandoned(self) -> None:
        """Let go of items whose client is gone."""
        gone = [s for s in self._decoder.sequences if any(p.dropped for p, _, _ in s.owner.by_parcel())]
        self._decoder.drop(gone)
        for sequence in gone:
            self._scheduler.retry(sequence.owner, alone=False)

    def _take_all_apart(self, error: Exception) -> None:
        """A step has raised: give its items back, and find out which of them is to blame."""
        sequences = self._decoder.sequences
        self._decoder.drop(sequences)
        single = len(sequences) == 1
        memory = is_out_of_memory(error)
        if memory:
            free_memory()
            self._budget.shrink(len(sequences))
            self._decoder.max_sequences = self._budget.now
        else:
            self._look_at(error)
        for sequence in sequences:
            batch: MicroBatch = sequence.owner
            if single and batch.alone:
                self._count_fault(error)
                self._scheduler.fail(batch, TOO_LARGE if memory else FAULTY)
            else:
                self._scheduler.retry(batch, alone=single or not memory)
