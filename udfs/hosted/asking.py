"""From a column to requests: each row's text is read, told apart and written as what the provider is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.errors import EXPIRED, RowError, unreadable
from udfs.hosted.asked import Asked, Request, make_request
from udfs.hosted.tasks import HostedTask
from udfs.tasks.text_generation import make_asker
from udfs.text.templates import read_texts
from udfs.worker.windows import find_duplicates

_REQUEST = pa.struct([pa.field("id", pa.string()), pa.field("line", pa.string()), pa.field("tokens", pa.int32())])
_ERROR = pa.struct([pa.field("code", pa.string()), pa.field("message", pa.string())])
ASKED = pa.struct([pa.field("requests", pa.list_(_REQUEST)), pa.field("error", _ERROR)])


@dataclass(frozen=True)
class Question:
    """What is asked about one text: the same in two forms.

    Args:
        asked: As tasks know it.
        requests: As it is sent, one for each.
    """

    asked: tuple[Asked, ...]
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Window:
    """Rows whose texts are told apart.

    Args:
        rows: Number of rows.
        questions: About N distinct texts; of one that cannot be asked about, why.
        text_of_row: (R,) int64, which distinct text a row has; -1 where it failed before.
        failures: Row number -> what is wrong with it.
    """

    rows: int
    questions: list[Question | RowError]
    text_of_row: np.ndarray
    failures: dict[int, RowError]


def read_rows(rows: pa.Array, task: HostedTask) -> Window:
    """Render, check and tell apart the texts of some rows, and ask about each; past the deadline, fail them unseen.

    Args:
        rows: What `make_ask_udf` gets.
        task: What is asked.
    """
    if task.spec.is_late():
        return Window(len(rows), [], np.full(len(rows), -1), dict.fromkeys(range(len(rows)), EXPIRED))
    return read_asked_rows(rows, task)


def read_asked_rows(rows: pa.Array, task: HostedTask) -> Window:
    """As `read_rows`, whatever the time is: of rows that have been asked about."""
    read = read_texts(rows, make_asker(task.spec))
    texts, text_of_row = find_duplicates(read.texts, dedupe=task.spec.dedupe)
    questions = [ask_about(text, task) for text in texts.to_pylist()]
    return Window(len(read.texts), questions, text_of_row, dict(read.failures))


def ask_about(text: str, task: HostedTask) -> Question | RowError:
    """What is asked about a text, or why nothing can be."""
    try:
        asked = task.ask(text)
        if isinstance(asked, RowError):
            return asked
        more = task.laid_over_tokens
        return Question(tuple(asked), tuple(make_request(task.body(each), each, more_tokens=more) for each in asked))
    except UnicodeEncodeError as error:
        return unreadable(error)


def ask_rows(rows: pa.Array, task: HostedTask) -> pa.StructArray:
    """The requests of each row, or why it has none.

    Returns:
        (R,) of type ASKED; identical rows have identical requests.
    """
    window = read_rows(rows, task)
    told = [_tell(question) for question in window.questions]
    made = [
        told[text] if text >= 0 else {"requests": [], "error": _tell_error(window.failures[row])}
        for row, text in enumerate(window.text_of_row.tolist())
    ]
    return pa.array(made, ASKED)


def _tell(question: Question | RowError) -> dict[str, Any]:
    if isinstance(question, RowError):
        return {"requests": [], "error": _tell_error(question)}
    return {"requests": [_tell_request(r) for r in _distinct(question.requests)], "error": None}


def _distinct(requests: Sequence[Request]) -> list[Request]:
    return list({request.id: request for request in requests}.values())


def _tell_request(request: Request) -> dict[str, Any]:
    return {"id": request.id, "line": request.line, "tokens": request.tokens}


def _tell_error(error: RowError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}
