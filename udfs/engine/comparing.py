"""What some of the items that an engine has run take one at a time, measured once nothing else is to be done."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler

_CLIENT = "one at a time"
_CUT_OFF = 1.5  # budgets after which an item is let go that is not done


@dataclass(frozen=True)
class Timed:
    """One item by itself.

    Args:
        tokens: Of its own.
        seconds: That it took.
    """

    tokens: int
    seconds: float


class Comparer:
    """Times items one at a time, by the same lanes that have run them together.

    Args:
        scheduler: The engine's; it keeps the sample.
        lanes: Of a CPU, whose lanes have a share of its cores each: what an item takes there is counted as if each
            lane had one at a time. 1 on a GPU, which an item has for itself.
    """

    def __init__(self, scheduler: Scheduler, *, lanes: int) -> None:
        self._scheduler, self._lanes = scheduler, lanes
        self._asked, self._lock = set[str](), threading.Lock()

    def measure(self, run: str, *, budget_s: float) -> list[Timed]:
        """Time items until the budget is spent, the sample is, or somebody wants the engine.

        Args:
            run: Who asks; a second time it gets nothing.
            budget_s: Seconds.
        """
        with self._lock:
            if run in self._asked or not self._scheduler.idle():
                return []
            self._asked.add(run)
            until, timed = time.monotonic() + budget_s, list[Timed]()
            alarm = threading.Timer(_CUT_OFF * budget_s, self._scheduler.drop, [_CLIENT])
            alarm.daemon = True
            alarm.start()
            try:
                for number, items in enumerate(self._scheduler.draw_sample()):
                    if time.monotonic() >= until or not self._scheduler.idle():
                        break
                    began = time.monotonic()
                    self._scheduler.put(parcel := Parcel(_CLIENT, number, items, alone=True))
                    with contextlib.suppress(StopIteration):
                        next(self._scheduler.answers(_CLIENT))
                    if parcel.left:  # it was let go
                        break
                    if number and not parcel.faults.any():  # the first one is to warm up
                        timed.append(Timed(len(items.ids), (time.monotonic() - began) / self._lanes))
            finally:
                alarm.cancel()
                self._scheduler.drop(_CLIENT)
                self._scheduler.forget(_CLIENT)
            return timed
