"""A worker's side of the engine: windows of items go out in parcels, their outputs come back, whatever dies between."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from udfs.errors import EngineError
from udfs.wire.faults import FAULTY, find_known_faults
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.link import Link, LinkBrokenError, open_link
from udfs.worker.outputs import Outputs, Ticket
from udfs.worker.windows import cut_parcels

_ALARM_LAG_S = 0.05  # so that whoever it wakes sees that the deadline has passed


@dataclass(frozen=True)
class _Sent:
    """A parcel that is not answered yet.

    Args:
        ticket: Whose window's.
        indices: Which of its items.
        alone: Each is to run alone.
        suspected: They were running when an engine died.
    """

    ticket: Ticket
    indices: np.ndarray
    alone: bool = False
    suspected: bool = False


class LateError(Exception):
    """The deadline has passed."""


class EngineClient:
    """A task's conversation with its executor's engine.

    The engine is looked for, and started if need be, on a thread, as soon as the client is made. An engine that dies
    is replaced and what it left unanswered is sent again; the items that were running then, one by one. The item that
    was running all by itself is to blame: it fails, and is never sent again while the executor lives. At the spec's
    deadline, what is unanswered fails, and nothing more is sent.

    Raises:
        ModelError, EngineError: From `submit` and `collect`: the engine does not start, or fails on everything.
    """

    def __init__(self, engine: EngineId) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._sent: dict[int, _Sent] = {}
        self._opening: Future[Link] | None = None if engine.spec.is_late() else _open_aside(engine)
        self._replaced: Link | None = None
        self._alarm: threading.Timer | None = None
        if engine.spec.deadline is not None:
            self._alarm = threading.Timer((self._left_s() or 0) + _ALARM_LAG_S, self._interrupt)
            self._alarm.daemon = True
            self._alarm.start()

    @property
    def link(self) -> Link:
        """The way to the engine; waits for the engine to start.

        Raises:
            LateError: The deadline came first.
        """
        if self._replaced:
            return self._replaced
        if self._opening is None:
            raise LateError
        try:
            return self._opening.result(self._left_s())
        except TimeoutError as error:
            raise LateError from error

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm:
            self._alarm.cancel()
        with contextlib.suppress(Exception):  # it never opened, or is broken already
            if self._is_open():
                self.link.close(done=not self._sent)
            elif self._opening:
                self._opening.add_done_callback(_close)

    def submit(self, items: Items) -> Ticket:
        """Send a window's items; does not wait for their outputs."""
        ticket = Ticket(items)
        try:
            if len(items):
                self._submit(ticket)
        except LateError:
            self._give_up(ticket)
        return ticket

    def _submit(self, ticket: Ticket) -> None:
        items = ticket.items
        self._check_time()
        known = find_known_faults(self.link.home, items)
        ticket.put_fault(known, FAULTY, self.link.ready.name)
        wanted = np.setdiff1d(np.arange(len(items)), known)
        for places in cut_parcels(items.lengths[wanted], parcel_tokens=self.link.ready.parcel_tokens):
            number = self._remember(_Sent(ticket, wanted[places]))
            try:
                self._send(number)
            except LinkBrokenError:
                self._recover()

    def collect(self, ticket: Ticket) -> Outputs:
        """Wait for a window's outputs, in whatever order windows were submitted."""
        try:
            while ticket.left:
                self._receive()
        except LateError:
            self._give_up(ticket)
        return ticket.outputs()

    def _receive(self) -> None:
        """Take the next answer."""
        self._check_time()
        try:
            answer = self.link.receive()
        except LinkBrokenError:
            self._recover()
            return
        sent = self._sent.pop(answer.number)
        if len(answer.faults) != len(sent.indices):
            raise EngineError(f"the engine gave {len(answer.faults)} outputs for {len(sent.indices)} items")
        sent.ticket.put(sent.indices, answer, self.link.ready.name)

    def _check_time(self) -> None:
        if self._engine.spec.is_late():
            raise LateError

    def _left_s(self) -> float | None:
        deadline = self._engine.spec.deadline
        return None if deadline is None else max(0.0, deadline - time.time())

    def _is_open(self) -> bool:
        return self._replaced is not None or (self._opening is not None and self._opening.done())

    def _interrupt(self) -> None:
        """Wake who waits for the engine."""
        with contextlib.suppress(Exception):  # it never opened, or is broken already
            if self._is_open():
                self.link.interrupt()

    def _give_up(self, ticket: Ticket) -> None:
        """The deadline has passed: have the engine forget what it has not answered."""
        if self._is_open():
            self.link.close(done=False)
        self._sent = {}
        ticket.expire()

    def _remember(self, sent: _Sent) -> int:
        number = next(self._numbers)
        self._sent[number] = sent
        return number

    def _send(self, number: int) -> None:
        sent = self._sent[number]
        self.link.send(number, sent.ticket.items.take(sent.indices), alone=sent.alone)

    def _recover(self) -> None:
        """Reach another engine and send again what is unanswered."""
        while True:
            self._check_time()
            dead = self.link
            dead.close(done=False)
            self._replaced = self._replace(dead)
            self._sort_out(dead, self._replaced)
            try:
                # What is beyond suspicion first: an engine that has answered something is not at fault itself.
                for number in sorted(self._sent, key=lambda number: self._sent[number].alone):
                    self._send(number)
            except LinkBrokenError:
                continue
            return

    def _replace(self, dead: Link) -> Link:
        """A link to another engine.

        Raises:
            LateError: The deadline came first; a link that opens then is closed.
        """
        opening = _open_aside(self._engine, dead=dead)
        try:
            return opening.result(self._left_s())
        except TimeoutError as error:
            opening.add_done_callback(_close)
            raise LateError from error

    def _sort_out(self, dead: Link, link: Link) -> None:
        """Tell the items that were running when an engine died from those that were not."""
        suspects = link.fallen(dead).suspects.get(dead.client, {})
        unanswered, self._sent = self._sent, {}
        for number, sent in unanswered.items():
            places = np.arange(len(sent.indices))
            known = np.isin(places, find_known_faults(link.home, sent.ticket.items.take(sent.indices)))
            running = np.isin(places, suspects.get(number, [])) & ~known
            rest = ~(known | running)
            sent.ticket.put_fault(sent.indices[known], FAULTY, dead.ready.name)
            if running.any():
                # Answers that are written one by one take many times as long: only where a second engine has died.
                alone = sent.suspected or not self._engine.spec.options.writes
                self._remember(replace(sent, indices=sent.indices[running], alone=alone, suspected=True))
            if rest.any():
                self._remember(replace(sent, indices=sent.indices[rest]))


def _open_aside(engine: EngineId, *, dead: Link | None = None) -> Future[Link]:
    """Have a link opened on a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="gristmill-engine")
    try:
        return pool.submit(open_link, engine, dead=dead)
    finally:
        pool.shutdown(wait=False)


def _close(opening: Future[Link]) -> None:
    """Close a link that opened when nobody waited for it any more; an engine would take it for a client."""
    with contextlib.suppress(Exception):  # it did not open
        opening.result().close(done=False)
