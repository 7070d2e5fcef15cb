"""Who is told how a run goes."""

from __future__ import annotations

from jobs.increments.plan import Plan
from jobs.output.committed import Increment


class Listener:
    """Is told how a run goes; this one does not care."""

    def begins(self, number: int, plan: Plan) -> None:
        """An increment is about to be scored."""

    def commits(self, increment: Increment) -> None:
        """An increment is committed."""
