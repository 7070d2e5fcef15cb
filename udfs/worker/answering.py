"""What an engine gave for items, as what becomes of each distinct text: its result columns, its error, its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from udfs.errors import EMPTY_INPUT, INPUT_TOO_LONG, NOT_FINITE, EngineError, RowError
from udfs.tasks.chunks import sum_by_unit
from udfs.tasks.row_options import is_repeated
from udfs.tasks.task import Task
from udfs.tasks.writing import Writing
from udfs.text.tokenizing import Tokenized
from udfs.wire.written import BROKEN, Written
from udfs.worker.outputs import ERRORS, LATE, Outputs


@dataclass(frozen=True)
class Answered:
    """What became of N distinct texts.

    Args:
        columns: An array of N for each of the task's fields.
        errors: Text number -> why it has no answer.
        usage: (N,) int64 tokens of each kind that the result tells.
        engines: Who answered.
        engine_of: (N,) which of them.
    """

    columns: list[pa.Array]
    errors: dict[int, RowError]
    usage: dict[str, np.ndarray]
    engines: list[str]
    engine_of: np.ndarray

    def go_on(self, texts: np.ndarray, then: Answered) -> Answered:
        """The same, where some texts have been asked about once more: that answer counts, the tokens of both do."""
        places = np.arange(len(self.engine_of))
        places[texts] = len(places) + np.arange(len(texts))
        columns = [
            pa.concat_arrays(both).take(pa.array(places)) for both in zip(self.columns, then.columns, strict=True)
        ]
        usage = {name: tokens + _put(then.usage[name], texts, len(tokens)) for name, tokens in self.usage.items()}
        errors = {**self.errors, **{int(texts[number]): error for number, error in then.errors.items()}}
        return Answered(columns, errors, usage, self.engines, self.engine_of)


def join_answered(parts: Sequence[Answered], types: Sequence[pa.DataType]) -> Answered:
    """What became of the texts of several parts, one after the other.

    Args:
        parts: One at least.
        types: Of the task's fields: a part without an answer has nulls of these.
    """
    starts = np.cumsum([0, *(len(part.engine_of) for part in parts)]).tolist()
    engines = list(dict.fromkeys(name for part in parts for name in part.engines))
    errors = {start + text: e for part, start in zip(parts, starts, strict=False) for text, e in part.errors.items()}
    number = {name: place for place, name in enumerate(engines)}
    known = [np.array([number[name] for name in part.engines] or [0]) for part in parts]
    columns = zip(types, *(part.columns for part in parts), strict=True)
    return Answered(
        [pa.concat_arrays([array.cast(kind) for array in arrays]) for kind, *arrays in columns],
        errors,
        {name: np.concatenate([part.usage[name] for part in parts]) for name in parts[0].usage},
        engines,
        np.concatenate([own[part.engine_of] for own, part in zip(known, parts, strict=True)]),
    )


def answer_texts(tokenized: Tokenized, outputs: Outputs, task: Task) -> Answered:
    """Bring the engine's outputs for items back to the texts that they came from.

    Raises:
        EngineError: Outputs and items do not match, so that an answer could land in the wrong row.
    """
    items, per_text = tokenized.items, task.units_per_text
    answered = outputs.values.shape[1] > 0
    expected = len(items.ids) if task.per_token and answered else len(items)
    if len(outputs.values) != expected:
        raise EngineError(f"{len(outputs.values)} outputs for {expected} items")
    written = _written_by_item(tokenized, outputs) if task.generates else None
    errors = _find_errors(tokenized, outputs, task)
    if written is not None and isinstance(task, Writing):
        answers = task.read(written, tokenized)
        columns, errors = answers.columns, {**answers.failures, **_broken(written, tokenized, task), **errors}
    elif answered:
        columns = task.columns(np.nan_to_num(outputs.values), tokenized)
    else:
        columns = [pa.nulls((len(tokenized.units) - 1) // per_text, field.type) for field in task.fields]
    sent = np.where(outputs.faults == LATE, 0, items.lengths)
    cost = {"input_tokens": sent, "padded_tokens": outputs.padded_tokens, **_written_tokens(written, len(items))}
    if items.options is not None:  # several answers to one prompt
        repeated = np.array([is_repeated(told) for told in items.options], dtype=bool)
        cost |= {name: np.where(repeated, 0, cost[name]) for name in ("input_tokens", "cached_tokens")}
    starts = tokenized.units[::per_text]
    return Answered(
        columns,
        errors,
        {name: sum_by_unit(tokens, starts) for name, tokens in cost.items()},
        outputs.engines,
        np.append(outputs.engine_of, 0)[starts[:-1]],
    )


def _put(tokens: np.ndarray, texts: np.ndarray, count: int) -> np.ndarray:
    spread = np.zeros(count, dtype=tokens.dtype)
    spread[texts] = tokens
    return spread


def _written_by_item(tokenized: Tokenized, outputs: Outputs) -> list[Written | None]:
    """What was written to each item; nothing where it has a fault, or none was answered."""
    written = outputs.written or [None] * len(tokenized.items)
    if len(written) != len(tokenized.items):
        raise EngineError(f"{len(written)} answers to {len(tokenized.items)} items")
    return [None if fault else answer for answer, fault in zip(written, outputs.faults.tolist(), strict=True)]


def _broken(written: list[Written | None], tokenized: Tokenized, task: Task) -> dict[int, RowError]:
    broken = np.array([item for item, answer in enumerate(written) if answer and answer.finish == BROKEN], dtype=int)
    return {int(text): NOT_FINITE for text in _texts_of(broken, tokenized, task)}


def _written_tokens(written: list[Written | None] | None, items: int) -> dict[str, np.ndarray]:
    """(N,) tokens that were written, and those that had been computed before, for each item."""
    output, cached = np.zeros((2, items), dtype=np.int64)
    for item, answer in enumerate(written or []):
        if answer:
            output[item], cached[item] = len(answer.ids), answer.cached_tokens
    return {"output_tokens": output, "cached_tokens": cached}


def _find_errors(tokenized: Tokenized, outputs: Outputs, task: Task) -> dict[int, RowError]:
    """Texts without an answer: nothing of them was sent, an item has a fault, or an output is not finite."""
    not_finite = np.flatnonzero(~np.isfinite(outputs.values).all(axis=1))
    if task.per_token:
        not_finite = np.searchsorted(tokenized.items.offsets, not_finite, side="right") - 1
    errors = {int(text): NOT_FINITE for text in _texts_of(not_finite, tokenized, task)}
    faulty = np.flatnonzero(outputs.faults)
    for item, text in zip(faulty, _texts_of(faulty, tokenized, task), strict=True):
        errors[int(text)] = ERRORS[int(outputs.faults[item])]
    for unit in np.flatnonzero(np.diff(tokenized.units) == 0).tolist():
        why = INPUT_TOO_LONG if tokenized.truncated[unit] else EMPTY_INPUT
        errors[unit // task.units_per_text] = tokenized.failures.get(unit, why)
    return errors


def _texts_of(items: np.ndarray, tokenized: Tokenized, task: Task) -> np.ndarray:
    """The distinct text of each of some items."""
    return np.searchsorted(tokenized.units[:: task.units_per_text], items, side="right") - 1
