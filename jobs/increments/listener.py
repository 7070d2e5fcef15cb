"""Who is told how a run goes."""

from __future__ import annotations

from jobs.hosted.flight import Standing
from jobs.increments.plan import Plan
from jobs.output.committed import Increment


class Listener:
    """Is told how a run goes; this one does not care."""

    def begins(self, number: int, plan: Plan) -> None:
        """An increment is about to be scored."""

    def flies(self, progress: Standing) -> None:
        """A provider's batches of an increment are on their way."""

    def commits(self, increment: Increment) -> None:
        """An increment is committed."""


class Listeners(Listener):
    """Tells several."""

    def __init__(self, *several: Listener) -> None:
        self._several = several

    def begins(self, number: int, plan: Plan) -> None:
        for one in self._several:
            one.begins(number, plan)

    def flies(self, progress: Standing) -> None:
        for one in self._several:
            one.flies(progress)

    def commits(self, increment: Increment) -> None:
        for one in self._several:
            one.commits(increment)
