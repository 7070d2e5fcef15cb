"""The engine without its process: the same scheduler, lanes and model, for a benchmark or a test in one process."""

from __future__ import annotations

import uuid
from types import TracebackType

import numpy as np

from udfs.batching import Items
from udfs.engine.budget import Budget, measure_budget
from udfs.engine.client import Outputs, Ticket
from udfs.engine.model import Model
from udfs.engine.runner import Runner, Runs, plan_lanes
from udfs.engine.scheduler import Parcel, Scheduler
from udfs.engine.wire import make_answer
from udfs.executor import usable_cores
from udfs.spec import ScoreSpec


class LocalEngine:
    """A loaded model with its lanes in this process, answering one caller.

    Args:
        spec: What is asked of which model.
        model: Something else to run than the spec's model; it needs a budget then.
        budget: None measures it.
        lanes: None takes what suits the device.
    """

    def __init__(
        self, spec: ScoreSpec, *, model: Runs | None = None, budget: Budget | None = None, lanes: int | None = None
    ) -> None:
        per_token = False
        if model is None:
            model = loaded = Model(spec)
            per_token = loaded.per_token
            planned, threads = plan_lanes(on_cuda=loaded.on_cuda, cores=usable_cores())
            lanes = lanes or planned
            budget = budget or measure_budget(loaded, lanes=lanes, threads=threads, fixed=spec.max_batch_tokens)
        else:
            threads = 1
            budget = budget or Budget(spec.max_batch_tokens or 1024, 384)
        self.model, self.budget = model, budget
        self._client, self._number = uuid.uuid4().hex, 0
        self._scheduler = Scheduler(budget, pad_multiple=model.pad_multiple, lanes=lanes or 1, per_token=per_token)
        self._answers = self._scheduler.answers(self._client)
        self.runner = Runner(model, self._scheduler, budget, lanes=lanes or 1, threads=threads)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.close()

    def submit(self, items: Items) -> Ticket:
        """Queue a window's items."""
        self._number += 1
        if len(items):
            self._scheduler.put(Parcel(self._client, self._number, items))
        return Ticket(items)

    def collect(self, ticket: Ticket) -> Outputs:
        """Wait for a window's outputs; windows are collected in the order in which they were submitted."""
        if ticket.left:
            parcel = next(self._answers)
            answer = make_answer(parcel, self.model.width, per_token=self._scheduler.per_token)
            ticket.put(np.arange(len(ticket.items)), answer, self.model.name)
        return ticket.outputs()

    def forward(self, items: Items) -> Outputs:
        """Outputs of some items."""
        return self.collect(self.submit(items))
