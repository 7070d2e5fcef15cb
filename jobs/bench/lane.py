"""What an engine's lane takes around the steps of a decoder: items taken, written down, answered."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from jobs.errors import JobError
from udfs.engine.assembly import Shell
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler
from udfs.engine.writing import WritingRunner
from udfs.generation.decoding import Decoder
from udfs.generation.sequences import Sequence
from udfs.wire.items import Items, join_items
from udfs.wire.journal import Journal

_JOIN_S = 60.0


def time_lane(decoder: Decoder, prompts: list[np.ndarray], *, sequences: int) -> float:
    """Milliseconds a step, between steps, as prompts are written that all wait from the beginning.

    Args:
        decoder: Writes; nothing is being written.
        prompts: (P,) int32 tokens each.
        sequences: Written at once.

    Raises:
        JobError: The decoder has raised.
    """
    step, spans = decoder.step, list[tuple[float, float]]()

    def timed() -> list[Sequence]:
        began = time.perf_counter()
        over = step()
        spans.append((began, time.perf_counter()))
        return over

    budget = Budget(sequences, 1)
    scheduler = Scheduler(budget, pad_multiple=0, lanes=1, singly=True)
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder, mock.patch.object(decoder, "step", timed):
        scheduler.put(Parcel("bench", 0, join_items([Items(p, np.array([0, len(p)])) for p in prompts])))
        runner = WritingRunner(
            [decoder], Shell("bench"), scheduler, budget, threads=1, journal=Journal(Path(folder), 1)
        )
        try:
            parcel = next(scheduler.answers("bench"))
        finally:
            scheduler.close()
            runner.join(_JOIN_S)
    if parcel.faults.any():
        raise JobError("a step of the benchmark's decoder has raised; what it said is above")
    between = spans[-1][1] - spans[0][0] - sum(ended - began for began, ended in spans)
    return between / len(spans) * 1e3
