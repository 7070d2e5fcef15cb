"""How long a flight bears a provider that does not answer, or does not do what it is asked; less after the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.errors import DeadlineReached, EndpointError, JobError
from jobs.hosted.provider import BusyProviderError, LostReplyError

_CANCEL_S = 1800.0  # OpenAI takes ten minutes for it
_PATIENCE_S = 6 * 3600.0  # with a provider that does not answer
_FIRST_PATIENCE_S = 60.0  # where it has never answered
_LATE_PATIENCE_S = 60.0  # after the deadline


class Patience:
    """With one provider.

    Args:
        left_s: Seconds until the deadline; None without one.
    """

    def __init__(self, left_s: Callable[[], float | None]) -> None:
        self._left_s = left_s
        self._silent_since: float | None = None
        self._failing_since: float | None = None
        self._late_since: float | None = None
        self._has_answered = False

    def is_late(self) -> bool:
        """The deadline has passed."""
        left = self._left_s()
        return left is not None and left <= 0

    def is_over(self) -> bool:
        """What was cancelled at the deadline should have ended by now."""
        return self._late_s() > _CANCEL_S

    def is_answered(self) -> None:
        """The provider has done all that it was asked."""
        self._silent_since, self._failing_since, self._has_answered = None, None, True

    def wait_s(self, error: BusyProviderError, *, wanted_s: float) -> float:
        """Seconds for which a provider that is too busy is left alone.

        Raises:
            DeadlineReached: It is too late to wait.
        """
        self._give_up_late(error)
        self._has_answered, self._silent_since = True, None
        return min(error.after_s or wanted_s, _PATIENCE_S)

    def bear(self, error: LostReplyError) -> None:
        """A provider that does not answer may do so later.

        Raises:
            EndpointError: It has never answered.
            DeadlineReached: It is too late to wait.
            JobError: It has not for hours.
        """
        self._give_up_late(error)
        self._silent_since = self._silent_since or time.monotonic()
        silent_s = time.monotonic() - self._silent_since
        if not self._has_answered and silent_s > _FIRST_PATIENCE_S:
            raise EndpointError(f"{error}; see score.endpoint.base_url") from error
        if silent_s > _PATIENCE_S:
            raise JobError(f"{error}, and has not for {silent_s / 3600:.0f} hours; the same command goes on") from error

    def _late_s(self) -> float:
        """Seconds since it was first seen that the deadline has passed."""
        self._late_since = self._late_since or time.monotonic()
        return time.monotonic() - self._late_since

    def _give_up_late(self, error: LostReplyError | BusyProviderError) -> None:
        """Leave the rest to the next run, if the provider has not done what it is asked for long after the deadline."""
        self._failing_since = self._failing_since or time.monotonic()
        failing_s = time.monotonic() - self._failing_since
        if self.is_late() and min(self._late_s(), failing_s) > _LATE_PATIENCE_S:
            raise DeadlineReached(f"the deadline has passed, and {error}; the next run collects the answers")
