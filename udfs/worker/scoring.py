"""The way of a window: prepare (texts to items) -> forward (the engine) -> finish (outputs to result rows).

Only `forward` touches the device. `prepare` of the next window runs while `forward` of this one does, and while the
model still loads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from udfs.errors import EXPIRED, GristmillError, RowError, unreadable
from udfs.executor import Executor, executor_of
from udfs.model.files import open_model_of
from udfs.results import join_result, result_type
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.task import Task
from udfs.tasks.text_generation import make_asker
from udfs.tasks.writing import Answers, Writing
from udfs.text.templates import Texts, read_texts
from udfs.text.tokenizing import Tokenized
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.answering import Answered, answer_texts
from udfs.worker.client import EngineClient
from udfs.worker.outputs import Outputs, Ticket
from udfs.worker.windows import cut_windows, find_duplicates

T = TypeVar("T")
_ITEMS_A_ROW = 8  # on average over a window; more of them make it shorter
_WINDOW_BYTES = 64 << 20
_WINDOWS_IN_FLIGHT = 2  # the engine has the next one when it is done with one


class Client(Protocol):
    """What scoring needs of an engine: `EngineClient`."""

    def submit(self, items: Items) -> Ticket: ...

    def collect(self, ticket: Ticket) -> Outputs: ...


@dataclass(frozen=True)
class Prepared:
    """A window that is ready for the engine.

    Args:
        rows: Number of rows.
        text_of_row: (R,) int64, which distinct text a row has; -1 where it failed before.
        failures: Row number -> what is wrong with it.
        tokenized: The distinct texts; text t owns `units_per_text` units from t * units_per_text on.
        truncated: (N,) bool for each distinct text.
    """

    rows: int
    text_of_row: np.ndarray
    failures: dict[int, RowError]
    tokenized: Tokenized
    truncated: np.ndarray

    @property
    def items(self) -> Items:
        """What goes to the engine."""
        return self.tokenized.items


def score(
    batches: Iterable[pa.Array], spec: ScoreSpec, *, gpu: str | None = None, executor: Executor | None = None
) -> Iterator[pa.StructArray]:
    """Score a stream of rows by the executor's engine.

    Args:
        batches: Arrow arrays of strings, or of structs if the spec has a template.
        spec: What is asked.
        gpu: Address of the GPU that Spark gave the task.
        executor: Who owns the engine; None takes this process.

    Yields:
        Results of type `output_type(spec)`, a row for each row that came in, in order, cut anew into windows.

    Raises:
        ModelError, SpecError, EngineError: The world is broken; no row is to blame.
    """
    with EngineClient(EngineId(spec, gpu, executor or executor_of())) as client:
        yield from score_with(client, batches, spec)


def score_with(client: Client, batches: Iterable[pa.Array], spec: ScoreSpec) -> Iterator[pa.StructArray]:
    """Score a stream of rows by an engine that is at hand; otherwise as `score`."""
    task = make_task(spec, open_model_of(spec))
    windows = cut_windows(batches, **window_limits(spec, task.units_per_text))
    in_flight: deque[tuple[Prepared, Ticket]] = deque()
    for prepared in run_ahead(lambda window: prepare(window, spec, task), windows):
        in_flight.append((prepared, client.submit(prepared.items)))
        if len(in_flight) == _WINDOWS_IN_FLIGHT:
            yield _collect(client, *in_flight.popleft(), task)
    while in_flight:
        yield _collect(client, *in_flight.popleft(), task)


def window_limits(spec: ScoreSpec[Any], units_per_text: int) -> dict[str, int]:
    """Rows and bytes of a window, so that neither its items nor their tokens are too many for one call of a tokenizer.

    Args:
        spec: Says how many rows a window has.
        units_per_text: Items that a row makes, where its text is not too long: one for each label or language.
    """
    rows = min(spec.window_rows, spec.window_rows * _ITEMS_A_ROW // units_per_text)
    return {"window_rows": max(1, rows), "window_bytes": max(1, _WINDOW_BYTES // units_per_text)}


def _collect(client: Client, prepared: Prepared, ticket: Ticket, task: Task) -> pa.StructArray:
    return finish(prepared, answer(client, prepared.tokenized, ticket, task), task)


def answer(client: Client, tokenized: Tokenized, ticket: Ticket, task: Task) -> Answered:
    """Wait for the answers to some texts, and ask on where the task has more to ask about them."""
    answered = answer_texts(tokenized, client.collect(ticket), task)
    more = None
    if isinstance(task, Writing):
        more = task.ask_on(Answers(answered.columns, answered.errors), tokenized)
    if more is None:
        return answered
    return answered.go_on(more.texts, answer(client, more.tokenized, client.submit(more.tokenized.items), task))


def output_type(spec: ScoreSpec) -> pa.StructType:
    """The type of the result column, the task's own fields first."""
    return result_type(make_task(spec, open_model_of(spec)).fields)


def run_ahead(work: Callable[[pa.Array], T], windows: Iterator[pa.Array]) -> Iterator[T]:
    """Yield `work(window)` in order, always one window ahead of the caller, on a thread of its own."""

    def pull() -> T | None:
        window = next(windows, None)
        return None if window is None else work(window)

    with ThreadPoolExecutor(1, thread_name_prefix="gristmill-prepare") as pool:
        ahead = pool.submit(pull)
        while (ready := ahead.result()) is not None:
            ahead = pool.submit(pull)
            yield ready


def prepare(window: pa.Array, spec: ScoreSpec, task: Task) -> Prepared:
    """Render, check, tell apart and tokenize the texts of a window; past the deadline, fail them unseen."""
    if spec.is_late():
        return _expire(window, task)
    read = read_texts(window, make_asker(spec))
    texts, text_of_row = find_duplicates(read.texts, dedupe=spec.dedupe)
    try:
        tokenized = task.tokenize(texts.to_pylist())
    except GristmillError:
        raise
    except Exception:  # noqa: BLE001 - whatever the tokenizer does not take, it is the row that fails
        read = _without_unreadable(read, task)
        texts, text_of_row = find_duplicates(read.texts, dedupe=spec.dedupe)
        tokenized = task.tokenize(texts.to_pylist())
    truncated = np.logical_or.reduce(tokenized.truncated.reshape(len(texts), task.units_per_text), axis=1)
    return Prepared(len(window), text_of_row, read.failures, tokenized, truncated)


def _without_unreadable(read: Texts, task: Task) -> Texts:
    """Texts of which those have failed that cannot be tokenized, not even alone."""
    texts, failures = read.texts.to_pylist(), dict(read.failures)
    for row, text in enumerate(texts):
        try:
            task.tokenize([] if text is None else [text])
        except Exception as error:  # noqa: BLE001 - as above
            texts[row], failures[row] = None, unreadable(error)
    return Texts(pa.array(texts, pa.string()), failures)


def _expire(window: pa.Array, task: Task) -> Prepared:
    """A window that comes too late: all of its rows fail, nothing of it is for the engine."""
    none, rows = task.tokenize([]), len(window)
    failures = dict.fromkeys(range(rows), EXPIRED)
    return Prepared(rows, np.full(rows, -1), failures, none, np.zeros(0, dtype=bool))


def finish(prepared: Prepared, answered: Answered, task: Task) -> pa.StructArray:
    """Spread what became of distinct texts over the rows that have them."""
    failures = {**prepared.failures, **_spread(answered.errors, prepared.text_of_row)}
    return join_result(
        task.fields,
        answered.columns,
        text_of_row=prepared.text_of_row,
        failures=failures,
        truncated=prepared.truncated,
        usage=answered.usage,
        engines=answered.engines,
        engine_of=answered.engine_of,
    )


def _spread(errors: dict[int, RowError], text_of_row: np.ndarray) -> dict[int, RowError]:
    """What is wrong with distinct texts, by the rows that have them."""
    return {row: errors[text] for row, text in enumerate(text_of_row.tolist()) if text in errors} if errors else {}
