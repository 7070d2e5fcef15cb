"""How fast a worker asks: requests and tokens of a minute, and a pause where the provider asks for one."""

from __future__ import annotations

import email.utils
import threading
import time
from collections.abc import Callable, Mapping

_MINUTE_S = 60.0


class Pace:
    """When the next request may begin, so that one begins after the other at an even rate.

    Args:
        requests_per_minute: None for any.
        tokens_per_minute: Of requests as they begin; None for any.
        share: Of both that is ours.
        clock: In seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._a_request = _MINUTE_S / (requests_per_minute * share) if requests_per_minute else 0.0
        self._a_token = _MINUTE_S / (tokens_per_minute * share) if tokens_per_minute else 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._free_at = self._paused_until = 0.0

    def reserve(self, tokens: int) -> float:
        """Take the next place for a request of so many tokens; seconds until then."""
        with self._lock:
            now = self._clock()
            begins = max(now, self._free_at, self._paused_until)
            self._free_at = begins + max(self._a_request, tokens * self._a_token)
            return begins - now

    def pause(self, seconds: float) -> None:
        """Let nothing begin for so long."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a provider asks to wait, told as a number or a date; None where it tells none."""
    try:
        if told := headers.get("retry-after-ms"):
            return max(0.0, float(told) / 1000)
        told = headers.get("retry-after")
        if not told:
            return None
        if told.strip().replace(".", "", 1).isdigit():
            return float(told)
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
