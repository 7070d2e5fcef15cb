"""One request, asked live: paced, repeated where that may help, told from a world that is broken."""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from udfs.errors import EXPIRED, NO_REPLY, ProviderError, RowError, provider_error
from udfs.hosted.asked import Asked, Request, most_tokens
from udfs.hosted.clients import cause_of, explain_status, make_client
from udfs.hosted.keys import read_key, without_key
from udfs.hosted.pacing import Pace, read_retry_after
from udfs.hosted.tasks import HostedTask

FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_PATIENCE_S = 3600.0  # with a provider that says it is asked too much, where there is no deadline
_IN_VAIN = 8  # requests one after the other that failed after all repetitions: the provider is down
_OF_ROW = ("content_filter", "input_too_long")  # whatever the status is


class _PassingError(Exception):
    """A call that may go well another time.

    Args:
        row: What is wrong with the row if it never does.
        after_s: Before then it will not.
        is_crowded: The provider is asked too much.
        is_unreachable: Nothing answers there.
    """

    def __init__(
        self,
        row: RowError,
        after_s: float | None = None,
        *,
        is_crowded: bool = False,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(row.message)
        self.row, self.after_s, self.is_crowded, self.is_unreachable = row, after_s, is_crowded, is_unreachable


class Caller:
    """Asks a provider for a worker; its calls may be made from many threads.

    Args:
        task: What is asked.

    Raises:
        ProviderError: There is no key, or the client is not installed.
    """

    def __init__(self, task: HostedTask) -> None:
        endpoint = task.endpoint
        self.at_once = max(1, endpoint.max_in_flight_requests // endpoint.workers)
        self._task, self._endpoint = task, endpoint
        self._key = read_key(endpoint)
        self._client = make_client(endpoint, self._key, connections=self.at_once)
        rates = endpoint.requests_per_minute, endpoint.tokens_per_minute
        self._pace = _pace_of(endpoint.url, *rates, 1 / endpoint.workers)
        self._answered, self._in_vain, self._lock = False, 0, threading.Lock()
        self._closed = threading.Event()

    def __call__(self, request: Request, asked: Asked) -> Mapping[str, Any] | RowError:
        """The body of the response to a request, or why there is none.

        Raises:
            ProviderError: No request would be answered.
        """
        from tenacity import Retrying, retry_if_exception_type, wait_exponential_jitter

        backoff = wait_exponential_jitter(initial=FIRST_WAIT_S, max=_LONGEST_WAIT_S, jitter=FIRST_WAIT_S)
        failures = list[_PassingError]()

        def wait(state: Any) -> float:
            after_s = state.outcome.exception().after_s
            return float(backoff(state)) if after_s is None else float(after_s)

        def is_enough(state: Any) -> bool:
            failures.append(state.outcome.exception())
            if failures[-1].is_crowded:
                waited_s = state.seconds_since_start + (failures[-1].after_s or 0)
                return self._is_over() or (self._left_s() == math.inf and waited_s > _PATIENCE_S)
            return self._is_over() or sum(not f.is_crowded for f in failures) > self._endpoint.max_retries

        outcome: Mapping[str, Any] | RowError = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=is_enough,
            wait=wait,
            sleep=self._sleep,
            retry_error_callback=lambda _: self._give_up(failures[-1]),
        )(self._try, request, most_tokens(request, asked))
        return outcome

    def close(self) -> None:
        """Begin no call any more."""
        self._closed.set()
        self._client.close()

    def _try(self, request: Request, tokens: int) -> Mapping[str, Any] | RowError:
        self._sleep(self._pace.reserve(tokens))
        left_s = self._left_s()
        if self._is_over() or left_s <= 0:
            return EXPIRED
        import openai

        body = json.loads(request.line)
        try:
            options = {"timeout": min(self._endpoint.timeout_s, left_s)}
            answer = self._client.post(self._task.path, cast_to=object, body=body, options=options)
        except (openai.OpenAIError, ValueError) as error:
            return self._read_error(error)
        if not isinstance(answer, dict):
            raise _PassingError(NO_REPLY)
        with self._lock:
            self._answered, self._in_vain = True, 0
        return answer

    def _read_error(self, error: Exception) -> RowError:
        """What becomes of a row whose call failed.

        Raises:
            _PassingError: The call is worth another try.
            ProviderError: No call is, or none for hours. No error has what the provider said behind it, which may
                quote the row or the key.
        """
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._read_status(error.status_code, error.body, error.response.headers)
        if isinstance(error, openai.APIConnectionError):
            if ours := cause_of(error):
                raise ours from None
            told = provider_error("it did not answer in time, or hung up")
            raise _PassingError(told, is_unreachable=not isinstance(error, openai.APITimeoutError)) from None
        raise _PassingError(NO_REPLY) from None  # what came is no JSON

    def _read_status(self, status: int, body: Any, headers: Mapping[str, str]) -> RowError:
        row: RowError = self._task.dialect.read_failure(status, body)
        row = replace(row, message=without_key(row.message, self._key))
        if row.code in _OF_ROW:
            return row
        if world := explain_status(status, body, self._endpoint, self._task.spec.model):
            raise world from None
        if status not in (408, 409, 429) and status < 500:
            return row
        after_s = read_retry_after(headers)
        if after_s and after_s > _PATIENCE_S and self._left_s() == math.inf:
            raise ProviderError(
                f"{self._endpoint.url} takes no call for {after_s / 3600:,.0f} hours (HTTP {status}); run the same "
                "command again then, or set limits.deadline, within which it is waited for"
            ) from None
        if after_s:
            self._pace.pause(after_s)
        raise _PassingError(row, after_s, is_crowded=status == 429) from None

    def _give_up(self, error: _PassingError) -> RowError:
        """What becomes of a row whose call was repeated in vain.

        Raises:
            ProviderError: So were others, and none was answered in between.
        """
        if self._is_over():
            return EXPIRED
        with self._lock:
            self._in_vain += 1
            is_down = self._in_vain >= _IN_VAIN or (error.is_unreachable and not self._answered)
        if is_down:
            raise ProviderError(
                f"{self._endpoint.url} answers no call, also none of {self._endpoint.max_retries} repetitions "
                f"({error.row.message}); once it is up, run the same command again"
            )
        return error.row

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(max(0.0, min(seconds, self._left_s(), threading.TIMEOUT_MAX)))

    def _left_s(self) -> float:
        """Seconds until the deadline."""
        deadline = self._task.spec.deadline
        return math.inf if deadline is None else deadline - time.time()

    def _is_over(self) -> bool:
        return self._closed.is_set() or self._task.spec.is_late()


@functools.lru_cache(maxsize=16)
def _pace_of(url: str, requests: int | None, tokens: int | None, share: float) -> Pace:
    """One pace for all tasks of a worker: the next one goes on where the last one was."""
    return Pace(requests, tokens, share=share)
