"""The way of a window to a provider that is asked live: rows -> requests, many at once -> replies -> result rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from udfs.errors import SpecError
from udfs.hosted.answering import Outcome, Paid, finish
from udfs.hosted.asked import Request
from udfs.hosted.asking import Question, Window, read_rows
from udfs.hosted.calling import Caller
from udfs.hosted.tasks import HostedTask, make_hosted
from udfs.spec import ScoreSpec
from udfs.worker.windows import cut_windows

_WINDOWS_IN_FLIGHT = 2  # so that the last requests of one do not leave the provider idle


@dataclass(frozen=True)
class _Sent:
    """A window whose requests are on their way, by their ids."""

    window: Window
    calls: dict[str, Future[Outcome]]

    def outcome_of(self, request: Request) -> Outcome:
        return self.calls[request.id].result()


def score_live(batches: Iterable[pa.Array], spec: ScoreSpec[Any]) -> Iterator[pa.StructArray]:
    """Score a stream of rows by a provider that is asked live.

    Args:
        batches: As `udfs.worker.scoring.score`.
        spec: What is asked, with an endpoint.

    Yields:
        Results, a row for each row that came in, in order, cut anew into windows.

    Raises:
        SpecError: The provider cannot do what is asked.
        ProviderError: It takes no request at all: it is down, or the key, the model's name or the money is to blame.
    """
    task = check_live(spec)
    caller = Caller(task)
    pool = ThreadPoolExecutor(caller.at_once, thread_name_prefix="gristmill-call")
    in_flight: deque[_Sent] = deque()
    try:
        for rows in cut_windows(batches, window_rows=spec.window_rows):
            in_flight.append(_send(read_rows(rows, task), caller, pool))
            if len(in_flight) == _WINDOWS_IN_FLIGHT:
                yield _collect(in_flight.popleft(), task)
        while in_flight:
            yield _collect(in_flight.popleft(), task)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        caller.close()


def check_live(spec: ScoreSpec[Any]) -> HostedTask:
    """The task of a spec whose provider is asked live.

    Raises:
        SpecError: It is not, or cannot do what is asked.
    """
    task = make_hosted(spec)
    if task.endpoint.in_batches:
        raise SpecError(f"engine {task.endpoint.engine} answers in hours, which a UDF cannot wait for; take a job")
    return task


def _send(window: Window, caller: Caller, pool: ThreadPoolExecutor) -> _Sent:
    asked = {
        request.id: (request, each)
        for question in window.questions
        if isinstance(question, Question)
        for request, each in zip(question.requests, question.asked, strict=True)
    }
    return _Sent(window, {name: pool.submit(caller, *pair) for name, pair in asked.items()})


def _collect(sent: _Sent, task: HostedTask) -> pa.StructArray:
    for call in sent.calls.values():  # a broken world is told before the rest of a window is waited for
        call.result()
    return finish(sent.window, task, sent.outcome_of, Paid())
