"""Lanes of decoders: items come and go one by one, and each step of the model runs all that are there."""

from __future__ import annotations

import sys
import time
from collections import abc

import numpy as np

from udfs.engine.budget import Budget
from udfs.engine.parcels import MicroBatch
from udfs.engine.runner import Runner, Runs, end_process, told_in_short
from udfs.engine.scheduler import Scheduler
from udfs.errors import as_exception
from udfs.generation.decoding import Decoder
from udfs.generation.sequences import Sequence
from udfs.generation.vllm import EngineBrokenError, VllmDecoder
from udfs.model.memory import free_memory, is_out_of_memory
from udfs.wire.faults import FAULTY, REFUSED, TOO_LARGE
from udfs.wire.journal import Journal


class WritingRunner(Runner):
    """Runs a scheduler's items on decoders, one a lane, until the scheduler is closed.

    Memory that runs out halves the number of sequences, the pieces in which prompts are read and the cache; all three
    grow back. What was being written is written again. A step that raises has all of its items run again one by one,
    and only an item that raises by itself fails; but vLLM, once it has raised, ends with this process.

    Args:
        decoders: Write.
        model: What the runner shows for a model.
        scheduler: Gives items singly.
        budget: In sequences of one decoder.
        threads: CPU threads of each.
        journal: Where running items are written down; None in a process that is nobody's engine.
    """

    def __init__(
        self,
        decoders: abc.Sequence[Decoder | VllmDecoder],
        model: Runs,
        scheduler: Scheduler,
        budget: Budget,
        *,
        threads: int,
        journal: Journal | None = None,
    ) -> None:
        self._decoders = decoders
        self._pieces = Budget(min(decoder.step_tokens for decoder in decoders), 1)  # in tokens of a step
        self._held: dict[int, MicroBatch] = {}  # of a lane, the item that waits for room
        self._drops = [0] * len(decoders)  # that each lane has seen
        super().__init__(model, scheduler, budget, lanes=len(decoders), threads=threads, journal=journal)

    def _work(self, lane: int) -> None:
        decoder = self._decoders[lane]
        while not self._scheduler.is_closed():
            decoder.bound(sequences=self._budget.now, step_tokens=self._pieces.now)
            if self._admit(lane) and self._journal:
                self._journal.begin(lane, _running(decoder), self._budget.now)
            if len(decoder):
                self._began[lane] = time.monotonic()
                self._step(lane)
                self._began.pop(lane, None)
                self._drop_abandoned(lane)

    def _admit(self, lane: int) -> bool:
        """Begin items as long as there is room; waits for one where nothing is being written."""
        decoder = self._decoders[lane]
        before = len(decoder)
        while decoder.is_hungry():
            batch = self._held.pop(lane, None) or self._scheduler.take(wait=not len(decoder))
            if batch is None:
                break
            item = batch.round.items.take(batch.indices)
            prompt, told = item.ids, None if item.options is None else item.options[0]
            if not decoder.fits(len(prompt), told):
                self._scheduler.fail(batch, TOO_LARGE)
            elif not decoder.add(batch, prompt, told):
                if not len(decoder):  # not even where nothing else is
                    self._have_no_room(batch, len(prompt))
                    continue
                self._held[lane] = batch
                break
        return len(decoder) > before

    def _step(self, lane: int) -> None:
        decoder = self._decoders[lane]
        sequences = len(decoder)
        try:
            over = decoder.step()
        except EngineBrokenError as error:
            self._look_at(error)
            end_process(f"vLLM is broken: {told_in_short(error)}")
            return
        except BaseException as error:  # noqa: BLE001 - what a model raises is its own business, and its items' fate
            self._take_all_apart(lane, as_exception(error))
            return
        self._budget.note_success(sequences)
        self._scheduler.tally.add(batches=1, batched=sequences)
        if decoder.read:
            self._pieces.note_success(decoder.wrote + decoder.read)
        if not over:
            return
        if self._journal:  # before what is to run alone may begin
            self._journal.end(lane, len(over))
            if len(decoder):
                self._journal.begin(lane, _running(decoder), self._budget.now)
        for sequence in over:
            if sequence.refused:
                print(
                    f"gristmill: options of a row are refused: {told_in_short(sequence.error or ValueError())}",
                    file=sys.stderr,
                )
                self._scheduler.fail(sequence.owner, REFUSED)
                continue
            if sequence.error is not None:
                self._look_at(sequence.error)
                self._count_fault(sequence.error)
                self._scheduler.fail(sequence.owner, FAULTY)
                continue
            self._note_sound(len(sequence.prompt))
            ran = len(sequence.prompt) - sequence.cached_tokens + len(sequence.ids)
            self._scheduler.finish(sequence.owner, [sequence.written()], np.array([ran]))

    def _drop_abandoned(self, lane: int) -> None:
        """Let go of items whose client is gone; there is none as long as no client has gone since the last look."""
        if (drops := self._scheduler.drops) == self._drops[lane]:
            return
        self._drops[lane], decoder = drops, self._decoders[lane]
        gone = [sequence for sequence in decoder.sequences if sequence.owner.is_dropped()]
        decoder.drop(gone)
        for sequence in gone:
            self._scheduler.retry(sequence.owner, alone=False)
        if lane in self._held and self._held[lane].is_dropped():
            self._scheduler.retry(self._held.pop(lane), alone=False)

    def _have_no_room(self, batch: MicroBatch, tokens: int) -> None:
        """The cache, to which others have left little memory, is too small for a prompt."""
        if not batch.alone:  # other lanes may have some
            self._scheduler.retry(batch, alone=True)
            return
        _, tell = self._postpone(
            batch, tokens, MemoryError(f"out of memory: the cache has no room for {tokens} tokens")
        )
        tell()

    def _take_all_apart(self, lane: int, error: Exception) -> None:
        """A step has raised: give its items back, and find out which of them is to blame."""
        decoder = self._decoders[lane]
        sequences = decoder.sequences
        self._began.pop(lane, None)  # what follows may wait for other engines, and is no step that hangs
        if memory := is_out_of_memory(error):
            free_memory(error)
        else:
            self._look_at(error)
        decoder.drop(sequences)
        single, smaller = len(sequences) == 1, memory and self._give_way(decoder, sequences)
        if self._journal:  # nothing of it runs any more; a lost device has ended the process before
            self._journal.end(lane, 0)
        for sequence in sequences:
            batch: MicroBatch = sequence.owner
            if not (single and batch.alone):
                self._scheduler.retry(batch, alone=single or not memory)
            elif smaller:
                self._scheduler.retry(batch, alone=True)
            elif memory:
                _, tell = self._postpone(batch, len(sequence.prompt), error)
                tell()
            else:
                self._count_fault(error)
                self._scheduler.fail(batch, FAULTY)

    def _give_way(self, decoder: Decoder | VllmDecoder, sequences: list[Sequence]) -> bool:
        """Fewer sequences, a smaller cache and smaller pieces from now on; whether pieces can be smaller."""
        self._budget.shrink(len(sequences))
        if isinstance(decoder, Decoder):
            decoder.give_way(sequences)
        size = decoder.wrote + decoder.read
        if not decoder.read or size == 1:
            return False
        self._pieces.shrink(size)
        return True


def _running(decoder: Decoder | VllmDecoder) -> list[MicroBatch]:
    return [sequence.owner for sequence in decoder.sequences]
