"""What the device does next: parcels of all clients, in turn, become micro-batches for lanes that ask for one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from udfs.engine.budget import Budget
from udfs.engine.cutting import fit_batch
from udfs.engine.parcels import MicroBatch, Parcel, _make_round, _without_dropped
from udfs.engine.sample import Sample
from udfs.engine.tally import Tally, Waiting
from udfs.errors import GristmillError
from udfs.wire.items import Items, token_places
from udfs.wire.written import Written

ROUND_BATCHES = 16  # full micro-batches of a round, for each lane
_WAITING_TOKENS = 1 << 24  # of one client; it is made to wait above it


class Scheduler:
    """Parcels in, micro-batches to lanes, outputs in, answered parcels out. Safe for threads.

    Args:
        budget: Decides how large a micro-batch is.
        pad_multiple: Lengths are rounded up to a multiple of it.
        lanes: Micro-batches that run at once.
        per_token: Outputs are a row a token, not a row an item.
        singly: Items are taken one by one, by a model that puts them together itself.

    Attributes:
        drops: Clients that were dropped so far.
    """

    def __init__(
        self, budget: Budget, *, pad_multiple: int, lanes: int, per_token: bool = False, singly: bool = False
    ) -> None:
        self.per_token, self._singly = per_token, singly
        self._budget, self._pad_multiple, self._lanes = budget, pad_multiple, lanes
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[Parcel]] = {}
        self._unanswered: dict[str, deque[Parcel]] = {}
        self._ended: set[str] = set()
        self._gone: set[str] = set()
        self.drops = 0
        self._sound = False  # something has been answered
        self._cut: deque[MicroBatch] = deque()  # what waits of rounds, the next first
        self._alone: deque[MicroBatch] = deque()
        self._running = 0
        self._exclusive = False
        self._closed = False
        self._error: GristmillError | None = None
        self.tally, self._sample = Tally(), Sample()

    def put(self, parcel: Parcel) -> None:
        """Take a parcel; waits while its client has too much waiting. What a client that is gone sends is let go."""
        client = parcel.client
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or client in self._gone or self._waiting_tokens(client) < _WAITING_TOKENS
            )
            if client in self._gone:
                return
            self._unanswered.setdefault(client, deque()).append(parcel)
            if parcel.alone:
                alone = _make_round([parcel])
                self._alone.extend(MicroBatch(alone, np.array([i]), alone=True) for i in range(len(parcel.items)))
            else:
                self._waiting.setdefault(client, deque()).append(parcel)
            self._changed.notify_all()

    def end(self, client: str) -> None:
        """A client sends no more; what it sent is still answered."""
        with self._changed:
            self._ended.add(client)
            self._changed.notify_all()

    def drop(self, client: str) -> None:
        """A client is gone; what it sent is not run any more."""
        with self._changed:
            for parcel in self._unanswered.pop(client, ()):
                parcel.dropped = True
            self._waiting.pop(client, None)
            self._gone.add(client)
            self._cut = deque(filter(None, map(_without_dropped, self._cut)))
            self._alone = deque(filter(None, map(_without_dropped, self._alone)))
            self.drops += 1
            self._changed.notify_all()

    def forget(self, client: str) -> None:
        """A client that is gone sends nothing more."""
        with self._changed:
            self._ended.discard(client)
            self._gone.discard(client)

    def close(self, error: GristmillError | None = None) -> None:
        """Give no more micro-batches; every client that waits for an answer gets the error."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> MicroBatch | None:
        """The next micro-batch, as soon as there is one; None once the scheduler is closed, or if none is to wait."""
        with self._changed:
            while not self._closed:
                if (batch := self._next()) is not None:
                    self._running += 1
                    self._exclusive = batch.alone
                    return batch
                if not wait:
                    return None
                self._changed.wait(self._soonest_s())
            return None

    def is_closed(self) -> bool:
        """No more micro-batches are given."""
        return self._closed

    def finish(self, batch: MicroBatch, values: np.ndarray | list[Written], width: np.ndarray | int) -> None:
        """A micro-batch has its outputs, and what each item was padded to.

        Args:
            batch: B items.
            values: (B, D) or by token (t, D) in its order; or B answers that were written.
            width: (B,), or one for all.
        """
        widths = np.broadcast_to(width, len(batch.indices))
        offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
        with self._changed:
            for parcel, rows, places in batch.by_parcel():
                if isinstance(values, list):
                    parcel.put_written(places, [values[row] for row in rows], widths[rows])
                    continue
                taken = token_places(offsets, rows)[0] if self.per_token else rows
                parcel.put(places, values[taken], widths[rows], per_token=self.per_token)
            count = len(batch.indices)
            self.tally.add(items=count, tokens=int(offsets[-1]), padded_tokens=int(widths.sum()))
            if not self._singly:  # else a step of the model is a batch
                self.tally.add(batches=1, batched=count)
            self._sound = True
            self._released()

    def fail(self, batch: MicroBatch, fault: int) -> None:
        """Each item of a micro-batch has failed for good."""
        with self._changed:
            for parcel, _, places in batch.by_parcel():
                parcel.put_fault(places, fault)
            self.tally.add(failed=len(batch.indices))
            self._released()

    def retry(self, batch: MicroBatch, *, alone: bool, after_s: float | None = None) -> None:
        """Cut a micro-batch anew, by what the budget now is, or run its items one by one while nothing else runs.

        Args:
            batch: Has not gone through.
            alone: One by one.
            after_s: Not before; others run meanwhile, and it is one try more.
        """
        with self._changed:
            if (left := _without_dropped(batch)) is not None:
                if alone:
                    tries, due = left.tries + (after_s is not None), time.monotonic() + (after_s or 0.0)
                    left = replace(left, alone=True, tries=tries, not_before=due)
                    self._alone.extend(replace(left, indices=left.indices[i : i + 1]) for i in range(len(left.indices)))
                else:
                    self._cut.appendleft(left)
            self._released()

    def answers(self, client: str) -> Iterator[Parcel]:
        """A client's parcels in the order in which they came, each when its last item is done.

        Raises:
            GristmillError: What the scheduler was closed with.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._answer(client) or self._is_over(client))
                if client in self._gone:
                    return
                parcel = self._answer(client)
                if parcel is None:
                    if self._error is not None:
                        raise self._error
                    return
                self._unanswered[client].popleft()
            yield parcel

    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        with self._changed:
            return not (self._running or self._cut or self._alone or any(self._waiting.values()))

    def look(self) -> tuple[Tally, Waiting]:
        """What was done, and what waits."""
        with self._changed:
            parcels = [parcel.items for parcels in self._waiting.values() for parcel in parcels]
            cut = [batch.lengths for batch in (*self._cut, *self._alone)]
            items = sum(map(len, parcels)) + sum(map(len, cut))
            tokens = sum(len(one.ids) for one in parcels) + sum(int(lengths.sum()) for lengths in cut)
            return self.tally, Waiting(items, tokens, self._running, self._budget.now)

    def draw_sample(self) -> list[Items]:
        """Some of the items that were taken since this was last asked."""
        with self._changed:
            return self._sample.draw()

    def _waiting_tokens(self, client: str) -> int:
        return sum(len(parcel.items.ids) for parcel in self._waiting.get(client, ()))

    def _answer(self, client: str) -> Parcel | None:
        first = next(iter(self._unanswered.get(client, ())), None)
        return first if first is not None and not first.left else None

    def _is_over(self, client: str) -> bool:
        return client in self._gone or (client in self._ended and not self._unanswered.get(client))

    def _released(self) -> None:
        self._running -= 1
        self._exclusive = False
        self._changed.notify_all()

    def _next(self) -> MicroBatch | None:
        if self._exclusive:
            return None
        due = next((batch for batch in self._alone if batch.not_before <= time.monotonic()), None)
        if due is not None and (self._sound or not (self._cut or any(self._waiting.values()))):
            if self._running:
                return None
            self._alone.remove(due)
            return due
        if not self._cut:
            self._begin_round()
        if not self._cut:
            return None
        rest = self._cut.popleft()
        count = 1 if self._singly else self._fit(rest.lengths)
        if count < len(rest.indices):
            self._cut.appendleft(replace(rest, indices=rest.indices[count:]))
        return replace(rest, indices=rest.indices[:count])

    def _soonest_s(self) -> float | None:
        """Seconds until the first of the items that wait for memory is due; None if there is none."""
        left = [batch.not_before - time.monotonic() for batch in self._alone]
        return min((seconds for seconds in left if seconds > 0), default=None)

    def _fit(self, lengths: np.ndarray) -> int:
        return fit_batch(
            lengths,
            max_batch_tokens=self._budget.now,
            min_batch_tokens=self._budget.min_batch_tokens,
            pad_multiple=self._pad_multiple,
        )

    def _begin_round(self) -> None:
        """Take a parcel of each client in turn until there is enough for some full micro-batches."""
        wanted, parcels = ROUND_BATCHES * self._lanes * self._budget.now, []
        while wanted > 0 and any(self._waiting.values()):
            client, waiting = next((c, w) for c, w in self._waiting.items() if w)
            self._waiting[client] = self._waiting.pop(client)  # it is now the last one
            parcels.append(waiting.popleft())
            wanted -= len(parcels[-1].items.ids)
        if parcels:
            made = _make_round(parcels)
            self._sample.add(made.items)
            self._cut.append(MicroBatch(made, np.argsort(-made.items.lengths, kind="stable")))
            self._changed.notify_all()  # clients that wait to send more
