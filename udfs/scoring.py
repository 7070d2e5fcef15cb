"""The way of a window: prepare (texts to items) -> forward (the engine) -> finish (outputs to result rows).

Only `forward` touches the device. `prepare` of the next window runs while `forward` of this one does, and while the
model still loads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa

from udfs.asking import make_asker
from udfs.batching import Items, cut_windows, find_duplicates, mean_by_unit, sum_by_unit
from udfs.engine.client import ERRORS, LATE, EngineClient, Outputs, Ticket
from udfs.engine.home import EngineId
from udfs.errors import EMPTY_INPUT, EXPIRED, INPUT_TOO_LONG, NOT_FINITE, EngineError, RowError
from udfs.executor import Executor, executor_of
from udfs.generation.written import BROKEN, Written
from udfs.models import open_model
from udfs.results import join_result, result_type
from udfs.spec import ScoreSpec
from udfs.tasks import Task, make_task
from udfs.tasks.text_generation import TextGeneration
from udfs.templating import read_texts
from udfs.tokenizing import Spans

T = TypeVar("T")
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
        items: The distinct texts' tokens.
        units: (U + 1,) where each unit's items begin; text t owns `units_per_text` units from t * units_per_text on.
        truncated: (N,) bool for each distinct text.
        spans: Where the tokens stand in the texts, for a task that answers by token.
    """

    rows: int
    text_of_row: np.ndarray
    failures: dict[int, RowError]
    items: Items
    units: np.ndarray
    truncated: np.ndarray
    spans: Spans | None = None


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
    task = make_task(spec, open_model(spec.model, spec.revision))
    windows = cut_windows(batches, window_rows=spec.window_rows)
    in_flight: deque[tuple[Prepared, Ticket]] = deque()
    for prepared in run_ahead(lambda window: prepare(window, spec, task), windows):
        in_flight.append((prepared, client.submit(prepared.items)))
        if len(in_flight) == _WINDOWS_IN_FLIGHT:
            yield _collect(client, *in_flight.popleft(), task)
    while in_flight:
        yield _collect(client, *in_flight.popleft(), task)


def _collect(client: Client, prepared: Prepared, ticket: Ticket, task: Task) -> pa.StructArray:
    return finish(prepared, client.collect(ticket), task)


def output_type(spec: ScoreSpec) -> pa.StructType:
    """The type of the result column, the task's own fields first."""
    return result_type(make_task(spec, open_model(spec.model, spec.revision)).fields)


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
    tokenized = task.tokenize(texts.to_pylist())
    truncated = np.logical_or.reduce(tokenized.truncated.reshape(len(texts), task.units_per_text), axis=1)
    return Prepared(
        len(window), text_of_row, read.failures, tokenized.items, tokenized.units, truncated, tokenized.spans
    )


def _expire(window: pa.Array, task: Task) -> Prepared:
    """A window that comes too late: all of its rows fail, nothing of it is for the engine."""
    none, rows = task.tokenize([]), len(window)
    failures = dict.fromkeys(range(rows), EXPIRED)
    return Prepared(rows, np.full(rows, -1), failures, none.items, none.units, np.zeros(0, dtype=bool))


def finish(prepared: Prepared, outputs: Outputs, task: Task) -> pa.StructArray:
    """Bring the engine's outputs back into rows.

    Raises:
        EngineError: Outputs and items do not match, so that an answer could land in the wrong row.
    """
    items, units, count = prepared.items, prepared.units, len(prepared.truncated)
    answered = outputs.values.shape[1] > 0
    expected = len(items.ids) if task.per_token and answered else len(items)
    if len(outputs.values) != expected:
        raise EngineError(f"{len(outputs.values)} outputs for {expected} items")
    text_errors = _text_errors(prepared, outputs, task)
    written = _written_by_item(prepared, outputs) if task.generates else None
    if written is not None and isinstance(task, TextGeneration):
        answers = task.read(_by_unit(written, units))
        fields, text_errors = answers.columns, {**answers.failures, **_broken(written, prepared, task), **text_errors}
    else:
        fields = _columns(prepared, outputs, task) if answered else [pa.nulls(count, f.type) for f in task.fields]
    failures = {**prepared.failures, **_spread(text_errors, prepared.text_of_row)}
    sent = np.where(outputs.faults == LATE, 0, items.lengths)
    cost = {"input_tokens": sent, "padded_tokens": outputs.padded_tokens, **_written_tokens(written, len(items))}
    per_text = {name: sum_by_unit(tokens, units) for name, tokens in cost.items()}
    return join_result(
        task.fields,
        fields,
        text_of_row=prepared.text_of_row,
        failures=failures,
        truncated=prepared.truncated,
        usage={name: v.reshape(count, task.units_per_text).sum(axis=1) for name, v in per_text.items()},
        engines=outputs.engines,
        engine_of=_first_of_each_text(outputs.engine_of, prepared, task),
    )


def _spread(errors: dict[int, RowError], text_of_row: np.ndarray) -> dict[int, RowError]:
    """What is wrong with distinct texts, by the rows that have them."""
    return {row: errors[text] for row, text in enumerate(text_of_row.tolist()) if text in errors} if errors else {}


def _written_by_item(prepared: Prepared, outputs: Outputs) -> list[Written | None]:
    """What was written to each item; nothing where it has a fault, or none was answered."""
    written = outputs.written or [None] * len(prepared.items)
    if len(written) != len(prepared.items):
        raise EngineError(f"{len(written)} answers to {len(prepared.items)} items")
    return [None if fault else answer for answer, fault in zip(written, outputs.faults.tolist(), strict=True)]


def _by_unit(written: list[Written | None], units: np.ndarray) -> list[Written | None]:
    """The answer to each unit's one item; none to a unit without."""
    return [
        written[start] if stop > start else None
        for start, stop in zip(units[:-1].tolist(), units[1:].tolist(), strict=True)
    ]


def _broken(written: list[Written | None], prepared: Prepared, task: Task) -> dict[int, RowError]:
    broken = np.array([item for item, answer in enumerate(written) if answer and answer.finish == BROKEN], dtype=int)
    return {int(text): NOT_FINITE for text in _texts_of(broken, prepared, task.units_per_text)}


def _written_tokens(written: list[Written | None] | None, items: int) -> dict[str, np.ndarray]:
    """(N,) tokens that were written, and those that had been computed before, for each item."""
    output, cached = np.zeros((2, items), dtype=np.int64)
    for item, answer in enumerate(written or []):
        if answer:
            output[item], cached[item] = len(answer.ids), answer.cached_tokens
    return {"output_tokens": output, "cached_tokens": cached}


def _first_of_each_text(of_item: np.ndarray, prepared: Prepared, task: Task) -> np.ndarray:
    """(N,) what holds for each distinct text's first item; 0 for a text without items."""
    first = prepared.units[:: task.units_per_text][: len(prepared.truncated)]
    return np.append(of_item, 0)[first]


def _columns(prepared: Prepared, outputs: Outputs, task: Task) -> list[pa.Array]:
    if task.per_token:
        return task.columns(np.nan_to_num(outputs.values), prepared.spans)
    by_unit = mean_by_unit(outputs.values, prepared.items.lengths, prepared.units)
    values = by_unit.reshape(len(prepared.truncated), task.units_per_text, by_unit.shape[1])
    return task.columns(np.nan_to_num(values))


def _text_errors(prepared: Prepared, outputs: Outputs, task: Task) -> dict[int, RowError]:
    """Distinct texts without an answer: nothing of them was sent, an item has a fault, or an output is not finite."""
    per_text, faults = task.units_per_text, outputs.faults
    without_item = (np.diff(prepared.units).reshape(-1, per_text) == 0).any(axis=1)
    not_finite = np.flatnonzero(~np.isfinite(outputs.values).all(axis=1))
    if task.per_token:
        not_finite = np.searchsorted(prepared.items.offsets, not_finite, side="right") - 1
    errors = {int(text): NOT_FINITE for text in _texts_of(not_finite, prepared, per_text)}
    faulty = np.flatnonzero(faults)
    for item, text in zip(faulty, _texts_of(faulty, prepared, per_text), strict=True):
        errors[int(text)] = ERRORS[int(faults[item])]
    for text in np.flatnonzero(without_item):
        errors[int(text)] = INPUT_TOO_LONG if prepared.truncated[text] else EMPTY_INPUT
    return errors


def _texts_of(items: np.ndarray, prepared: Prepared, per_text: int) -> np.ndarray:
    """The distinct text of each of some items."""
    return np.searchsorted(prepared.units[::per_text], items, side="right") - 1
