"""From replies to results: the lines that came back find the rows whose requests they answer.

A row's requests are made again as they were asked, so that nothing but their ids has to be kept of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from udfs.errors import NO_REPLY, RowError
from udfs.hosted.asked import Reply, Request
from udfs.hosted.asking import Question, Window, read_asked_rows
from udfs.hosted.openai import parse_json
from udfs.hosted.tasks import HostedTask
from udfs.results import USAGE, join_result, result_type

TEXT, REPLY = "text", "reply"  # fields of what `make_answer_udf` is called on
_ID = 32  # last characters of a custom_id

Outcome = Mapping[str, Any] | RowError


def answer_rows(batches: Iterable[pa.StructArray], task: HostedTask) -> Iterator[pa.StructArray]:
    """Give rows the replies to their requests.

    Args:
        batches: Structs of TEXT, what a row's text is made of, and REPLY, a line as the provider wrote it. Those with a
            line come first, and are no rows.
        task: What was asked.

    Yields:
        Results, one for each struct that came in, in order; null for a line.
    """
    held, paid = Replies(task), Paid()
    for batch in batches:
        line, text = pc.struct_field(batch, REPLY), pc.struct_field(batch, TEXT)
        is_line = np.asarray(line.is_valid())
        held.add(line.drop_null().to_pylist())
        rows = text.filter(pa.array(~is_line))
        results = finish(read_asked_rows(rows, task), task, held, paid)
        place = np.where(is_line, -1, np.cumsum(~is_line) - 1)
        yield results.take(pa.array(place, mask=is_line))


class Replies:
    """Replies by the ids of the requests that they answer.

    Args:
        task: What was asked.
    """

    def __init__(self, task: HostedTask) -> None:
        self._task, self._lines = task, dict[str, str]()

    def add(self, lines: Iterable[str]) -> None:
        """Take lines as they came; one that is malformed answers nobody, and an answer is kept before a failure."""
        for line in lines:
            told = parse_json(line)
            whose, outcome = self._task.dialect.read_line(told) if told else (None, NO_REPLY)
            if whose and (not isinstance(outcome, RowError) or whose[-_ID:] not in self._lines):
                self._lines[whose[-_ID:]] = line

    def __call__(self, request: Request) -> Outcome:
        """What became of a request."""
        told = parse_json(self._lines.get(request.id, ""))
        outcome: Outcome = self._task.dialect.read_line(told)[1] if told else NO_REPLY
        return outcome


class Paid:
    """Which requests have been counted: what identical ones cost stands in one row."""

    def __init__(self) -> None:
        self._paid = set[str]()

    def is_first(self, request: Request) -> bool:
        """It is not; from now on it is."""
        first = request.id not in self._paid
        self._paid.add(request.id)
        return first


def finish(window: Window, task: HostedTask, outcome_of: Callable[[Request], Outcome], paid: Paid) -> pa.StructArray:
    """The results of a window's rows.

    Args:
        window: Rows, and what was asked about their texts.
        task: What was asked.
        outcome_of: What became of a request.
        paid: Of this window and those before it.
    """
    asked = [question.asked if isinstance(question, Question) else () for question in window.questions]
    replies = [_read(question, task, outcome_of) for question in window.questions]
    errors = {number: row for number, row in enumerate(window.questions) if isinstance(row, RowError)}
    for number, row in enumerate(replies):
        if failed := next((reply.error for reply in row if reply.error), None):
            errors[number] = failed
    columns, failures = task.columns(asked, [() if n in errors else row for n, row in enumerate(replies)])
    errors = {**failures, **errors}
    by_row = {row: errors[text] for row, text in enumerate(window.text_of_row.tolist()) if text in errors}
    return join_result(
        task.fields,
        columns,
        text_of_row=window.text_of_row,
        failures={**window.failures, **by_row},
        truncated=np.zeros(len(replies), dtype=bool),
        usage=_add_up(window.questions, replies, paid),
        engines=[task.engine],
        engine_of=np.zeros(len(replies), dtype=np.int64),
    )


def _read(question: Question | RowError, task: HostedTask, outcome_of: Callable[[Request], Outcome]) -> list[Reply]:
    if isinstance(question, RowError):
        return []
    pairs = zip(question.asked, question.requests, strict=True)
    return [task.read(outcome_of(request), asked) for asked, request in pairs]


def _add_up(
    questions: Sequence[Question | RowError], replies: Sequence[Sequence[Reply]], paid: Paid
) -> dict[str, np.ndarray]:
    """(N,) tokens of each text, by the provider's count; each request counts once."""
    usage = {name: np.zeros(len(questions), dtype=np.int64) for name in USAGE}
    for number, (question, row) in enumerate(zip(questions, replies, strict=True)):
        requests = () if isinstance(question, RowError) else question.requests
        for request, reply in zip(requests, row, strict=True):
            if paid.is_first(request):
                for name, tokens in reply.usage._asdict().items():
                    usage[name][number] += tokens
    return usage


def hosted_type(task: HostedTask) -> pa.StructType:
    """The type of the result column, the task's own fields first."""
    return result_type(task.fields)
