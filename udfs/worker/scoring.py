"""The way of a window: prepare (texts to items) -> forward (the engine) -> finish (outputs to result rows).

Only `forward` touches the device. A window's distinct texts are prepared part by part: the next parts are tokenized and
sent while the engine has those before, and while the model still loads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from udfs.errors import EXPIRED, GristmillError, RowError, as_exception, unreadable
from udfs.executor import Executor, executor_of
from udfs.model.files import open_model_of
from udfs.results import join_result, result_type
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.task import Task
from udfs.tasks.text_generation import make_asker
from udfs.tasks.writing import Answers, Writing
from udfs.text.templates import read_texts
from udfs.text.tokenizing import Tokenized
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.answering import Answered, answer_texts, join_answered
from udfs.worker.client import EngineClient
from udfs.worker.outputs import Outputs, Ticket
from udfs.worker.windows import cut_parcels, cut_windows, find_duplicates

T = TypeVar("T")
_ITEMS_A_ROW = 8  # on average over a window; more of them make it shorter
_WINDOW_BYTES = 64 << 20
_PART_CHARACTERS = 512 << 10  # of texts that are tokenized and sent together: some hundred milliseconds of one core
_PARTS_IN_FLIGHT = 4  # the engine has the next ones when it is done with one


class Client(Protocol):
    """What scoring needs of an engine: `EngineClient`."""

    def submit(self, items: Items) -> Ticket: ...

    def collect(self, ticket: Ticket) -> Outputs: ...


@dataclass(frozen=True)
class Window:
    """Rows whose texts are told apart.

    Args:
        rows: Number of rows.
        texts: N distinct ones.
        text_of_row: (R,) int64, which distinct text a row has; -1 where it failed before.
        failures: Row number -> what is wrong with it.
    """

    rows: int
    texts: list[str]
    text_of_row: np.ndarray
    failures: dict[int, RowError]

    def place(self, numbers: np.ndarray) -> np.ndarray:
        """(R,) int64, where the text of each row stands among some of the texts; -1 where it is none of them."""
        places = np.full(len(self.texts) + 1, -1)
        places[numbers] = np.arange(len(numbers))
        return places[self.text_of_row]

    def spread(self, errors: dict[int, RowError]) -> dict[int, RowError]:
        """What is wrong with distinct texts, by the rows that have them."""
        rows = enumerate(self.text_of_row.tolist()) if errors else ()
        return {row: errors[text] for row, text in rows if text in errors}


@dataclass(frozen=True)
class Part:
    """Some texts of a window, ready for the engine.

    Args:
        window: Whose.
        numbers: (N,) int64, which of its texts.
        tokenized: These texts; text t owns `units_per_text` units from t * units_per_text on.
        errors: Of texts of this part that are not sent, by their numbers.
        is_last: The window has no more.
    """

    window: Window
    numbers: np.ndarray
    tokenized: Tokenized
    errors: dict[int, RowError]
    is_last: bool

    def truncated(self, task: Task) -> np.ndarray:
        """(N,) bool for each text."""
        return np.logical_or.reduce(self.tokenized.truncated.reshape(len(self.numbers), task.units_per_text), axis=1)


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
    in_flight: deque[tuple[Part, Ticket]] = deque()
    answered: list[tuple[Part, Answered]] = []

    def collect() -> Iterator[pa.StructArray]:
        part, ticket = in_flight.popleft()
        answered.append((part, answer(client, part.tokenized, ticket, task)))
        if part.is_last:
            yield finish(answered, task)
            answered.clear()

    for part in run_ahead(cut_parts(windows, spec, task)):
        in_flight.append((part, client.submit(part.tokenized.items)))
        if len(in_flight) == _PARTS_IN_FLIGHT:
            yield from collect()
    while in_flight:
        yield from collect()


def window_limits(spec: ScoreSpec[Any], units_per_text: int) -> dict[str, int]:
    """Rows and bytes of a window, so that neither its items nor their tokens are too many for one call of a tokenizer.

    Args:
        spec: Says how many rows a window has.
        units_per_text: Items that a row makes, where its text is not too long: one for each label or language.
    """
    rows = min(spec.window_rows, spec.window_rows * _ITEMS_A_ROW // units_per_text)
    return {"window_rows": max(1, rows), "window_bytes": max(1, _WINDOW_BYTES // units_per_text)}


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


def run_ahead(made: Iterator[T]) -> Iterator[T]:
    """The same, made on a thread of its own, always one ahead of the caller."""
    with ThreadPoolExecutor(1, thread_name_prefix="gristmill-prepare") as pool:
        ahead = pool.submit(next, made, None)
        while (ready := ahead.result()) is not None:
            ahead = pool.submit(next, made, None)
            yield ready


def cut_parts(windows: Iterator[pa.Array], spec: ScoreSpec, task: Task) -> Iterator[Part]:
    """The texts of windows, tokenized part by part, the longest of a window first; each window has a part at least."""
    for rows in windows:
        window = read_window(rows, spec)
        lengths = np.fromiter(map(len, window.texts), np.int64, len(window.texts))
        parts = cut_parcels(lengths, parcel_tokens=max(1, _PART_CHARACTERS // task.units_per_text))
        for numbers in parts or [np.zeros(0, np.int64)]:
            yield tokenize_part(window, numbers, spec, task, is_last=not parts or numbers is parts[-1])


def read_window(rows: pa.Array, spec: ScoreSpec) -> Window:
    """Render, check and tell apart the texts of a window's rows; past the deadline, fail them unseen."""
    if spec.is_late():
        return Window(len(rows), [], np.full(len(rows), -1), dict.fromkeys(range(len(rows)), EXPIRED))
    read = read_texts(rows, make_asker(spec))
    texts, text_of_row = find_duplicates(read.texts, dedupe=spec.dedupe)
    return Window(len(rows), texts.to_pylist(), text_of_row, dict(read.failures))


def tokenize_part(window: Window, numbers: np.ndarray, spec: ScoreSpec, task: Task, *, is_last: bool = True) -> Part:
    """Tokenize some texts of a window; past the deadline, none."""
    if spec.is_late():
        return Part(window, numbers[:0], task.tokenize([]), dict.fromkeys(numbers.tolist(), EXPIRED), is_last)
    asked = [window.texts[number] for number in numbers.tolist()]
    errors: dict[int, RowError] = {}
    try:
        tokenized = task.tokenize(asked)
    except GristmillError:
        raise
    except BaseException as raised:  # noqa: BLE001 - whatever the tokenizer does not take, it is the row that fails
        as_exception(raised)
        errors = {number: error for number in numbers.tolist() if (error := _try_alone(window.texts[number], task))}
        numbers = np.array([number for number in numbers.tolist() if number not in errors], dtype=np.int64)
        tokenized = task.tokenize([window.texts[number] for number in numbers.tolist()])
    return Part(window, numbers, tokenized, errors, is_last)


def prepare(rows: pa.Array, spec: ScoreSpec, task: Task) -> Prepared:
    """A window as one part."""
    window = read_window(rows, spec)
    part = tokenize_part(window, np.arange(len(window.texts)), spec, task)
    failures = window.failures | window.spread(part.errors)
    return Prepared(window.rows, window.place(part.numbers), failures, part.tokenized, part.truncated(task))


def _try_alone(text: str, task: Task) -> RowError | None:
    """What is wrong with a text that cannot be tokenized, not even alone."""
    try:
        task.tokenize([text])
    except BaseException as error:  # noqa: BLE001 - as above
        return unreadable(as_exception(error))
    return None


def finish(answered: Sequence[tuple[Part, Answered]], task: Task) -> pa.StructArray:
    """Spread what became of a window's distinct texts over the rows that have them.

    Args:
        answered: All parts of one window.
        task: Whose columns they are.
    """
    window, parts = answered[0][0].window, [part for part, _ in answered]
    whole = join_answered([one for _, one in answered], [field.type for field in task.fields])
    order = np.concatenate([part.numbers for part in parts])
    errors = {int(order[place]): error for place, error in whole.errors.items()}
    for part in parts:
        errors |= part.errors
    return join_result(
        task.fields,
        whole.columns,
        text_of_row=window.place(order),
        failures=window.failures | window.spread(errors),
        truncated=np.concatenate([part.truncated(task) for part in parts]),
        usage=whole.usage,
        engines=whole.engines,
        engine_of=whole.engine_of,
    )
