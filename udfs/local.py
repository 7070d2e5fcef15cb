"""The engine without its process: the same scheduler, lanes and model, for a benchmark or a test in one process."""

from __future__ import annotations

import uuid
from types import TracebackType

import numpy as np

from udfs.engine.assembly import assemble
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel, make_answer
from udfs.engine.runner import Runs
from udfs.executor import usable_cores
from udfs.spec import ScoreSpec
from udfs.wire.items import Items
from udfs.worker.outputs import Outputs, Ticket

_CLOSE_S = 30.0  # for the micro-batches that run


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
        engine = assemble(spec, cores=usable_cores(), model=model, budget=budget, lanes=lanes)
        self.model, self.budget, self.runner = engine.model, engine.budget, engine.runner
        self.name, self._scheduler = engine.name, engine.scheduler
        self._client, self._number = uuid.uuid4().hex, 0
        self._sent: dict[Ticket, int] = {}
        self._done: dict[int, Parcel] = {}
        self._answers = self._scheduler.answers(self._client)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.close()
        self.runner.join(_CLOSE_S)

    def submit(self, items: Items) -> Ticket:
        """Queue a window's items."""
        self._number += 1
        ticket = Ticket(items)
        if len(items):
            self._sent[ticket] = self._number
            self._scheduler.put(Parcel(self._client, self._number, items))
        return ticket

    def collect(self, ticket: Ticket) -> Outputs:
        """Wait for a window's outputs, in whatever order windows were submitted."""
        if ticket.left:
            number = self._sent.pop(ticket)
            while number not in self._done:
                parcel = next(self._answers)
                self._done[parcel.number] = parcel
            parcel = self._done.pop(number)
            answer = make_answer(parcel, self.model.width, per_token=self._scheduler.per_token)
            ticket.put(np.arange(len(ticket.items)), answer, self.name)
        return ticket.outputs()

    def forward(self, items: Items) -> Outputs:
        """Outputs of some items."""
        return self.collect(self.submit(items))
