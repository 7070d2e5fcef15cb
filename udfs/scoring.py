"""The way of a window: prepare (texts to items) -> forward (the engine) -> finish (outputs to result rows).

Only `forward` touches the device. `prepare` of the next window runs while `forward` of this one does, and while the
model still loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyarrow as pa

from udfs.batching import Items, cut_windows, find_duplicates, mean_by_unit, sum_by_unit
from udfs.engine import Engine, Outputs
from udfs.errors import EMPTY_INPUT, INPUT_TOO_LONG, NOT_FINITE, EngineError, RowError
from udfs.models import open_model
from udfs.results import join_result, result_type
from udfs.spec import ScoreSpec
from udfs.tasks import Task, make_task
from udfs.templating import read_texts

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A window that is ready for the engine.

    Args:
        rows: Number of rows.
        text_of_row: (R,) int64, which distinct text a row has; -1 where it failed before.
        failures: Row number -> what is wrong with it.
        items: The distinct texts' tokens; text t owns `units_per_text` units from t * units_per_text on.
        truncated: (N,) bool for each distinct text.
    """

    rows: int
    text_of_row: np.ndarray
    failures: dict[int, RowError]
    items: Items
    truncated: np.ndarray


def score(batches: Iterable[pa.Array], spec: ScoreSpec, *, gpu: str | None = None) -> Iterator[pa.StructArray]:
    """Score a stream of rows.

    Args:
        batches: Arrow arrays of strings, or of structs if the spec has a template.
        spec: What is asked.
        gpu: Address of the GPU that Spark gave the task.

    Yields:
        Results of type `output_type(spec)`, a row for each row that came in, in order, cut anew into windows.

    Raises:
        ModelError, SpecError, EngineError: The world is broken; no row is to blame.
    """
    task = make_task(spec, open_model(spec.model, spec.revision))
    engine = start_engine(spec, gpu)
    windows = cut_windows(batches, window_rows=spec.window_rows)
    for prepared in run_ahead(lambda window: prepare(window, spec, task), windows):
        yield finish(prepared, engine.result().forward(prepared.items), task)


def output_type(spec: ScoreSpec) -> pa.StructType:
    """The type of the result column, the task's own fields first."""
    return result_type(make_task(spec, open_model(spec.model, spec.revision)).fields)


@lru_cache(maxsize=2)
def start_engine(spec: ScoreSpec, gpu: str | None = None) -> Future[Engine]:
    """Load a model once in this process, on a thread of its own. A failure is remembered like a success."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="gristmill-load")
    try:
        return pool.submit(Engine, spec, gpu=gpu)
    finally:
        pool.shutdown(wait=False)


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
    """Render, check, tell apart and tokenize the texts of a window."""
    read = read_texts(window, spec.template)
    texts, text_of_row = find_duplicates(read.texts, dedupe=spec.dedupe)
    tokenized = task.tokenize(texts.to_pylist())
    truncated = np.logical_or.reduce(tokenized.truncated.reshape(len(texts), task.units_per_text), axis=1)
    return Prepared(len(window), text_of_row, read.failures, tokenized.items, truncated)


def finish(prepared: Prepared, outputs: Outputs, task: Task) -> pa.StructArray:
    """Bring the engine's outputs back into rows.

    Raises:
        EngineError: Outputs and items do not match, so that an answer could land in the wrong row.
    """
    items, count = prepared.items, len(prepared.truncated)
    if len(outputs.values) != len(items):
        raise EngineError(f"{len(outputs.values)} outputs for {len(items)} items")
    by_unit = mean_by_unit(outputs.values, items.lengths, items.units)
    values = by_unit.reshape(count, task.units_per_text, by_unit.shape[1])
    text_errors = _text_errors(prepared, values)
    failures = dict(prepared.failures)
    if text_errors:
        for row, text in enumerate(prepared.text_of_row.tolist()):
            if text in text_errors:
                failures[row] = text_errors[text]
    fields = task.columns(np.nan_to_num(values)) if len(items) else [pa.nulls(count, f.type) for f in task.fields]
    per_text = [sum_by_unit(tokens, items.units) for tokens in (items.lengths, outputs.padded_tokens)]
    input_tokens, padded_tokens = (v.reshape(count, task.units_per_text).sum(axis=1) for v in per_text)
    return join_result(
        task.fields,
        fields,
        text_of_row=prepared.text_of_row,
        failures=failures,
        truncated=prepared.truncated,
        input_tokens=input_tokens,
        padded_tokens=padded_tokens,
        engine=outputs.engine,
    )


def _text_errors(prepared: Prepared, values: np.ndarray) -> dict[int, RowError]:
    """Distinct texts without an answer: nothing of them was sent, or what came back is not finite."""
    per_text = values.shape[1]
    without_item = (np.diff(prepared.items.units).reshape(-1, per_text) == 0).any(axis=1)
    not_finite = ~np.isfinite(values).all(axis=(1, 2))
    errors = {int(t): NOT_FINITE for t in np.flatnonzero(not_finite & ~without_item)}
    for text in np.flatnonzero(without_item):
        errors[int(text)] = INPUT_TOO_LONG if prepared.truncated[text] else EMPTY_INPUT
    return errors
