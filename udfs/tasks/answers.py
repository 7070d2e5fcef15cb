"""What was written to the questions of texts, checked, and as the columns that tell it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from udfs.errors import RowError, invalid_output
from udfs.tasks.writing_options import ANY_OBJECT, WritingOptions
from udfs.text.schemas import InvalidAnswerError, answer_type, parse_answer
from udfs.wire.written import EMPTY, FINISH_REASONS, LENGTH

_HOW_ENDED = {LENGTH: "; max_new_tokens ended it", EMPTY: "; a stop string came first"}
_TOKEN = [pa.field("token", pa.string()), pa.field("logprob", pa.float32()), pa.field("bytes", pa.binary())]
LOGPROBS = pa.list_(pa.struct([*_TOKEN, pa.field("top", pa.list_(pa.struct(_TOKEN)))]))
CANDIDATES = pa.list_(
    pa.struct(
        [
            pa.field("text", pa.string()),
            pa.field("finish_reason", pa.string()),
            pa.field("stop_sequence", pa.string()),
            pa.field("reasoning", pa.string()),
            pa.field("output_tokens", pa.int32()),
            pa.field("logprobs", LOGPROBS),
        ]
    )
)


class Told(NamedTuple):
    """An answer, how it ended, what the model thought before, which stop string came, what its tokens were."""

    text: str
    finish: int
    thoughts: str | None = None
    stop: str | None = None
    tokens: int = 0
    logprobs: list[dict[str, Any]] | None = None


def answer_fields(options: WritingOptions) -> tuple[pa.Field, ...]:
    """The result columns of a task whose model writes; maps where a row is asked several times."""
    if options.asked_for:
        return tuple(pa.field(f"{name}s", pa.map_(pa.string(), kind)) for name, kind in _list_columns(options))
    return tuple(pa.field(name, kind) for name, kind in _list_columns(options))


def answer_columns(
    options: WritingOptions,
    told: Sequence[Told | None],
    candidates: Sequence[Sequence[Told | None]],
    ways: Sequence[WritingOptions | None],
    *,
    check: Callable[[str, WritingOptions], Any] | None = None,
) -> tuple[list[pa.Array], dict[int, RowError]]:
    """What was written to N texts, each asked once for each of `asked_for`, as columns.

    Args:
        options: The job's.
        told: The answer to each question, the questions of a text side by side; None where there is none.
        candidates: All answers to it, the first of which counts.
        ways: How each was to be answered.
        check: What an answer is held to; None for `check_answer`.

    Returns:
        An array of N for each of `answer_fields`, and by the numbers of texts why an answer is none.
    """
    names = options.asked_for
    size = max(1, len(names))
    values: list[Any] = [None] * len(told)
    failures: dict[int, RowError] = {}
    for unit, (answer, way) in enumerate(zip(told, ways, strict=True)):
        if answer is None or way is None:
            continue
        try:
            checked = [(check or check_answer)(each.text, way) for each in candidates[unit] if each]
            values[unit] = checked[0] if way.form == options.form else None
        except InvalidAnswerError as error:
            failures[unit // size] = invalid_output(f"{error}{_HOW_ENDED.get(answer.finish, '')}")
    fields, columns = answer_fields(options), _list_values(options, told, values, candidates, ways)
    if not names:
        return [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)], failures
    return [
        pa.array([list(zip(names, column[i : i + size], strict=True)) for i in range(0, len(column), size)], field.type)
        for column, field in zip(columns, fields, strict=True)
    ], failures


def check_answer(text: str, way: WritingOptions) -> Any:
    """The value of an answer that was to be JSON.

    Raises:
        InvalidAnswerError: It is none, or none of the choices.
    """
    form = way.form
    if form.choices and text.strip() not in _as_set(form.choices):
        raise InvalidAnswerError("the answer is none of the choices")
    return parse_answer(text, form.json_schema) if form.json_schema else None


@lru_cache(maxsize=16)
def _as_set(choices: tuple[str, ...]) -> frozenset[str]:
    return frozenset(choices)


def _list_values(
    options: WritingOptions,
    answers: Sequence[Told | None],
    values: list[Any],
    candidates: Sequence[Sequence[Told | None]],
    ways: Sequence[WritingOptions | None],
) -> list[list[Any]]:
    told = {
        "text": [_text_of(answer, way) for answer, way in zip(answers, ways, strict=True)],
        "finish_reason": [answer and FINISH_REASONS[answer.finish] for answer in answers],
        "answer": values,
        "reasoning": [answer and answer.thoughts for answer in answers],
        "logprobs": [answer and answer.logprobs for answer in answers],
        "candidates": [
            [_as_candidate(each, way) for each in all_] if answer else None
            for answer, all_, way in zip(answers, candidates, ways, strict=True)
        ]
        if options.tells_candidates
        else [],
    }
    return [told[name] for name, _ in _list_columns(options)]


def _text_of(answer: Told | None, way: WritingOptions | None) -> str | None:
    return answer and (answer.text.strip() if way and way.form.choices else answer.text)


def _as_candidate(answer: Told | None, way: WritingOptions | None) -> dict[str, Any] | None:
    return answer and {
        "text": _text_of(answer, way),
        "finish_reason": FINISH_REASONS[answer.finish],
        "stop_sequence": answer.stop,
        "reasoning": answer.thoughts if way and way.reasoning == "keep" else None,
        "output_tokens": answer.tokens,
        "logprobs": answer.logprobs,
    }


def _list_columns(options: WritingOptions) -> Iterator[tuple[str, pa.DataType]]:
    """Name and type of what is told of each answer."""
    yield "text", pa.string()
    yield "finish_reason", pa.string()
    if options.form.json_schema not in (None, ANY_OBJECT):
        yield "answer", answer_type(json.loads(str(options.form.json_schema)))
    if options.reasoning == "keep":
        yield "reasoning", pa.string()
    if options.tells_logprobs:
        yield "logprobs", LOGPROBS
    if options.tells_candidates:
        yield "candidates", CANDIDATES
