"""A stand-in for an engine that writes, for tests of what is asked and what becomes of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from udfs.model.files import open_model
from udfs.spec import ScoreSpec
from udfs.tasks import registry
from udfs.tasks.registry import make_task
from udfs.tasks.writing import Writing
from udfs.wire.items import Items
from udfs.wire.written import STOP, Written
from udfs.worker.outputs import LATE, Outputs, Ticket
from udfs.worker.scoring import output_type, score_with


def make_spec(model: str, **options: Any) -> ScoreSpec:
    return registry.make_spec(**{"task": "text-generation", "model": model, "max_new_tokens": 20, **options})


def make_writing_task(spec: ScoreSpec) -> Writing:
    task = make_task(spec, open_model(spec.model))
    assert isinstance(task, Writing)
    return task


class StandIn:
    """An engine that answers each prompt with what `write` makes of it; None for a fault."""

    def __init__(self, spec: ScoreSpec, write: Any) -> None:
        self._task, self._write = make_writing_task(spec), write

    def submit(self, items: Items) -> Ticket:
        return Ticket(items)

    def collect(self, ticket: Ticket) -> Outputs:
        count = len(ticket.items)
        answers = [self._write(prompt) for prompt in self._task.show(ticket.items)]
        written = [
            a if a is None or isinstance(a, Written) else Written(encode_text(self._task, a), STOP, 2) for a in answers
        ]
        faults = np.array([LATE if a is None else 0 for a in answers], dtype=np.int8)
        return Outputs(
            values=np.zeros((count, 0), dtype=np.float32),
            padded_tokens=ticket.items.lengths.astype(np.int32),
            faults=faults,
            engines=["e"],
            engine_of=np.zeros(count, dtype=np.int32),
            written=written,
        )


def encode_text(task: Writing, text: str) -> np.ndarray:
    return np.array(task.codec.encode([text], special=False)[0], dtype=np.int32)


def score_rows(rows: list[Any], spec: ScoreSpec, write: Any) -> list[dict[str, Any]]:
    results = list(score_with(StandIn(spec, write), [pa.array(rows)], spec))
    assert all(result.type == output_type(spec) for result in results)
    return [row for result in results for row in result.to_pylist(maps_as_pydicts="strict")]
