"""The way of a window of requests: lines are read, parted by the models that they name, answered, and written as lines.

Each model has its engine; a window's requests are with all of their engines at once, while the next window is read.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from udfs.batch_api import anthropic, openai
from udfs.batch_api.requests import Answer, Ask, Line, RefusedError, as_object, read_object
from udfs.batch_api.spec import BatchSpec, Served
from udfs.batch_api.tools import part_calls
from udfs.batch_api.writing import RequestWriting
from udfs.errors import BAD_REQUEST, EXPIRED, MALFORMED, RowError
from udfs.executor import Executor, executor_of
from udfs.model.files import open_model_of
from udfs.results import COMMON_FIELDS, USAGE, result_type
from udfs.tasks.feature_extraction import FeatureExtraction
from udfs.tasks.registry import make_task
from udfs.tasks.text_generation import plain_values
from udfs.text.templates import Texts, pack_texts
from udfs.text.tokenizing import Tokenized, join_ids
from udfs.text.values import to_values
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.client import EngineClient
from udfs.worker.outputs import Ticket
from udfs.worker.scoring import Client, Prepared, answer, prepare, run_ahead
from udfs.worker.windows import cut_windows

FIELDS = tuple(
    pa.field(name, kind)
    for name, kind in (
        ("custom_id", pa.string()),
        ("model", pa.string()),
        ("status_code", pa.int32()),
        ("text", pa.string()),
        ("line", pa.string()),
    )
)
PROBLEM, REQUEST = "problem", "request"  # columns of lines that a job has laid out
_WINDOWS_IN_FLIGHT = 2
_OF_REQUEST = {
    "input_too_long": (400, "context_length_exceeded"),
    "empty_input": (400, "invalid_request"),
    "bad_options": (400, "invalid_request"),
    "bad_template": (400, "invalid_request"),
    "unreadable": (400, "invalid_request"),
    "bad_request": (400, "invalid_value"),
    "invalid_output": (500, "invalid_output"),
}
_DIALECTS = {"openai-batch": openai, "anthropic-batch": anthropic}
_HELD = {"openai-batch": "body", "anthropic-batch": "params"}

MakeClient = Callable[[Any], Client]


@dataclass
class _Row:
    """A row that is being answered.

    Args:
        line: What it asks.
        answers: Of its prompts, as they come.
        failure: Why it is not answered, as the output tells it.
        refused: The same, as the service tells it.
        usage: Tokens that it cost.
        engine: Who answered.
    """

    line: Line
    answers: list[Answer | None] = field(default_factory=list)
    failure: RowError | None = None
    refused: RefusedError | None = None
    usage: np.ndarray = field(default_factory=lambda: np.zeros(len(USAGE), dtype=np.int64))
    engine: str | None = None


class _Place(NamedTuple):
    """Which row's which prompt."""

    row: int
    prompt: int


@dataclass(frozen=True)
class _Part:
    """Prompts of a window that go to one engine.

    Args:
        route: Whose.
        places: Of each text, where its answer belongs.
        prepared: The texts.
    """

    route: _Route
    places: list[_Place]
    prepared: Prepared


class _Route:
    """A model's way of answering, and its engine."""

    def __init__(self, spec: Any, client: Client) -> None:
        self.spec, self.client = spec, client
        files = open_model_of(spec)
        self.task: Any = RequestWriting(spec, files) if spec.options.writes else make_task(spec, files)


def result_of_requests() -> pa.StructType:
    """The type of the result column of requests."""
    return result_type(FIELDS)


def score_requests(
    batches: Iterable[pa.Array], ask: BatchSpec, *, gpu: str | None = None, executor: Executor | None = None
) -> Iterator[pa.StructArray]:
    """Answer a stream of requests by the executor's engines.

    Args:
        batches: Arrow arrays of structs: `request`, a line as text, with its `problem` where a look at the whole file
            has found one; or the fields of requests themselves, of a table.
        ask: The models, by the names that requests give them.
        gpu, executor: As `udfs.worker.scoring.score`.

    Yields:
        Results of type `result_of_requests()`, a row for each row that came in, in order.

    Raises:
        ModelError, SpecError, EngineError: The world is broken; no row is to blame.
    """
    owner = executor or executor_of()
    with contextlib.ExitStack() as stack:
        made: dict[str, Client] = {}

        def open_client(spec: Any) -> Client:
            key = repr(spec.for_engine())
            if key not in made:
                made[key] = stack.enter_context(EngineClient(EngineId(spec, gpu, owner)))
            return made[key]

        yield from answer_requests(batches, ask, open_client)


def answer_requests(batches: Iterable[pa.Array], ask: BatchSpec, open_client: MakeClient) -> Iterator[pa.StructArray]:
    """Answer a stream of requests by engines that are at hand; otherwise as `score_requests`."""
    work = _Requests(ask, open_client)
    in_flight: deque[tuple[list[_Row], list[tuple[_Part, Ticket]]]] = deque()
    for rows, parts in run_ahead(map(work.prepare, cut_windows(batches, window_rows=ask.window_rows))):
        in_flight.append((rows, [(part, part.route.client.submit(part.prepared.items)) for part in parts]))
        if len(in_flight) == _WINDOWS_IN_FLIGHT:
            yield work.finish(*in_flight.popleft())
    while in_flight:
        yield work.finish(*in_flight.popleft())


class _Requests:
    def __init__(self, ask: BatchSpec, open_client: MakeClient) -> None:
        self._ask, self._dialect = ask, _DIALECTS[ask.dialect]
        self._routes: dict[tuple[str, str], _Route] = {}
        self._open_client = open_client

    def prepare(self, window: pa.StructArray) -> tuple[list[_Row], list[_Part]]:
        """A window's lines read, and their prompts tokenized for each engine; past the deadline, none is."""
        rows = [self._read(values) for values in _values_of(window)]
        late = self._ask.deadline is not None and time.time() >= self._ask.deadline
        texts: dict[int, tuple[_Route, list[Any], list[_Place]]] = {}
        for number, row in enumerate(rows):
            if row.line.ask is None or row.refused:
                continue
            if late:
                row.failure = EXPIRED
                continue
            try:
                route = self._find_route(row.line.ask)
                prompts = row.line.ask.prompts
                if row.line.ask.kind == "write":
                    prompts = route.task.pack(row.line.ask, str(row.line.custom_id))
            except RefusedError as refused:
                row.refused = refused
                continue
            row.answers = [None] * len(prompts)
            _, held, places = texts.setdefault(id(route), (route, [], []))
            held += prompts
            places += [_Place(number, prompt) for prompt in range(len(prompts))]
        parts = [part for route, held, places in texts.values() for part in _prepare_parts(route, held, places)]
        return rows, parts

    def _read(self, values: Mapping[str, Any]) -> _Row:
        problem = values.get(PROBLEM)
        if REQUEST not in values:
            held = _HELD[self._ask.dialect]  # a struct, or JSON as text
            return _refuse_at_once(_Row(self._dialect.read_line({**values, held: as_object(values.get(held))})))
        told, wrong = read_object(values[REQUEST] or "")
        if wrong:
            broken = RefusedError(wrong, status=0, code="invalid_json_line")
            return _Row(Line(told.get("custom_id"), refused=broken), refused=broken, failure=MALFORMED)
        line = self._dialect.read_line(told)
        if problem and (line.refused is None or line.refused.status):
            code, _, message = problem.partition(": ")
            line = Line(line.custom_id, refused=RefusedError(message, status=0, code=code), url=line.url)
        return _refuse_at_once(_Row(line))

    def _find_route(self, ask: Ask) -> _Route:
        served = self._ask.find(ask.model)
        if served is None:
            raise RefusedError(
                f"there is no model {ask.model!r:.80} here; there are {', '.join(m.name for m in self._ask.models)}",
                status=404,
                code="model_not_found",
                param="model",
            )
        key = (served.name, ask.kind)
        if key not in self._routes:
            spec = _spec_of(served, ask.kind)
            self._routes[key] = _Route(spec, self._open_client(spec))
        return self._routes[key]

    def finish(self, rows: list[_Row], sent: list[tuple[_Part, Ticket]]) -> pa.StructArray:
        """The results of a window's rows, once its engines have answered."""
        for part, ticket in sent:
            _take_answers(part, ticket, rows)
        made = [self._write(row) for row in rows]
        columns = [pa.array([one[n] for one in made], kind.type) for n, kind in enumerate(FIELDS)]
        return pa.StructArray.from_arrays([*columns, *_common(rows)], fields=list(result_of_requests()))

    def _write(self, row: _Row) -> tuple[Any, ...]:
        outcome: dict[str, Any] | RefusedError
        text = None
        try:
            outcome = self._answer(row)
            text = next((one.candidates[0]["text"] for one in row.answers if one and one.candidates), None)
        except RefusedError as refused:
            outcome = row.refused = refused
        if isinstance(outcome, RefusedError) and row.failure is None:
            row.failure = RowError(BAD_REQUEST.code, outcome.code or BAD_REQUEST.message)
        status = outcome.status or None if isinstance(outcome, RefusedError) else 200
        model = row.line.ask.model if row.line.ask else None
        return (_show(row.line.custom_id), _show(model), status, text, self._dialect.write_line(row.line, outcome))

    def _answer(self, row: _Row) -> dict[str, Any]:
        if row.failure is EXPIRED:
            raise openai.expired()
        if row.refused:
            raise row.refused
        ask = row.line.ask
        answers = [answer for answer in row.answers if answer is not None]
        if ask is None or len(answers) < len(row.answers):
            raise RefusedError("the request was not answered", status=500, code="server_error")
        if error := next((answer.error for answer in answers if answer.error), None):
            row.failure = None if error.code in _OF_REQUEST else error
            if error.code == EXPIRED.code:
                raise openai.expired()
            status, code = _OF_REQUEST.get(error.code, (500, error.code))
            param = "max_tokens" if code == "context_length_exceeded" and ask.kind == "write" else None
            raise RefusedError(error.message, status=status, code=code, param=param)
        if ask.kind == "write":
            answers = [self._read_answer(answer, ask) for answer in answers]
        return ask.answer(answers)

    def _read_answer(self, answer: Answer, ask: Ask) -> Answer:
        """Answers without the space before them, where none is written on, and calls apart from what is said."""
        way = self._routes[(ask.model, "write")].task.calls if ask.tools is not None else None
        candidates = []
        for one in answer.candidates:
            text, calls = part_calls(one["text"], way, ask.tools or {})
            candidates.append(
                {
                    **one,
                    "text": text if ask.goes_on else text.removeprefix(" "),
                    "calls": calls[: 1 if ask.one_call else None],
                }
            )
        return Answer(candidates, None, answer.input_tokens, answer.cached_tokens)


def _refuse_at_once(row: _Row) -> _Row:
    row.refused = row.line.refused
    return row


def _spec_of(served: Served, kind: str) -> Any:
    spec = served.write if kind == "write" else served.embed
    if spec is None:
        why = dict(served.problems).get(kind, "it cannot")
        raise RefusedError(f"model {served.name!r:.80} does not {kind}: {why}", code="unsupported_model", param="model")
    return spec


def _values_of(window: pa.StructArray) -> list[dict[str, Any]]:
    """Rows of a window as mappings; of a table, without what is null."""
    names = [each.name for each in window.type]
    columns = [to_values(column) if name != REQUEST else column.to_pylist() for name, column in _named(window)]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if REQUEST in names:
        return [{**row, PROBLEM: row.get(PROBLEM) or None} for row in rows]
    return [plain_values(row) for row in rows]


def _named(window: pa.StructArray) -> list[tuple[str, pa.Array]]:
    return list(zip([each.name for each in window.type], window.flatten(), strict=True))


def _prepare_parts(route: _Route, prompts: list[Any], places: list[_Place]) -> Iterator[_Part]:
    """Texts, and token ids that are read as they are."""
    is_text = [isinstance(prompt, str) for prompt in prompts]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        window = pack_texts(Texts(pa.array(texts, pa.string()), {}))
        held = [place for place, plain in zip(places, is_text, strict=True) if plain]
        yield _Part(route, held, prepare(window, route.spec, route.task))
    if len(texts) < len(prompts):
        rest = [(place, prompt) for place, prompt, plain in zip(places, prompts, is_text, strict=True) if not plain]
        yield _Part(route, [place for place, _ in rest], _prepare_ids(route.task, [ids for _, ids in rest]))


def _prepare_ids(task: FeatureExtraction, prompts: list[list[int]]) -> Prepared:
    limit, size = task.tokenizer.max_tokens, task.tokenizer.vocabulary
    long = np.array([len(ids) > limit for ids in prompts])
    bad = {n: BAD_REQUEST for n, ids in enumerate(prompts) if max(ids) >= size}
    kept = [ids for n, ids in enumerate(prompts) if not long[n] and n not in bad]
    units = np.concatenate([[0], np.cumsum([not long[n] and n not in bad for n in range(len(prompts))])])
    items = Items(*join_ids(kept))
    tokenized = Tokenized(items, units.astype(np.int64), long, failures=bad)
    return Prepared(len(prompts), np.arange(len(prompts)), {}, tokenized, long)


def _take_answers(part: _Part, ticket: Ticket, rows: list[_Row]) -> None:
    """Bring an engine's answers to the rows that asked."""
    route, prepared = part.route, part.prepared
    answered = answer(route.client, prepared.tokenized, ticket, route.task)
    writes = route.spec.options.writes
    names = [each.name for each in route.task.fields]
    column = answered.columns[names.index("candidates" if writes else "embedding")]
    values: Any = column.to_pylist() if writes else _vectors(column)
    usage = np.stack([answered.usage[name] for name in USAGE])
    seen: set[int] = set()
    for number, (place, text) in enumerate(zip(part.places, prepared.text_of_row.tolist(), strict=True)):
        error = prepared.failures.get(number) or answered.errors.get(text)
        row = rows[place.row]
        if error or text < 0:
            row.answers[place.prompt] = Answer(error=error)
            continue
        read, cached = int(answered.usage["input_tokens"][text]), int(answered.usage["cached_tokens"][text])
        held = {"candidates": values[text]} if writes else {"vector": values[text]}
        row.answers[place.prompt] = Answer(**held, input_tokens=read, cached_tokens=cached)
        if text not in seen:
            seen.add(text)
            row.usage += usage[:, text]
        row.engine = answered.engines[int(answered.engine_of[text])] if answered.engines else None


def _vectors(column: pa.ListArray) -> list[np.ndarray | None]:
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [flat[start:end] for start, end in itertools.pairwise(offsets)]


def _common(rows: list[_Row]) -> list[pa.Array]:
    """The fields that results of every kind have."""
    error, usage, truncated, engine = COMMON_FIELDS
    failures = [row.failure and {"code": row.failure.code, "message": row.failure.message} for row in rows]
    costs = np.stack([row.usage for row in rows]).astype(np.int32) if rows else np.zeros((0, len(USAGE)), np.int32)
    scored = [row.engine if row.usage[0] else None for row in rows]
    return [
        pa.array(failures, error.type),
        pa.StructArray.from_arrays([pa.array(part) for part in costs.T], fields=list(usage.type)),
        pa.array([False] * len(rows), truncated.type),
        pa.array(scored, engine.type),
    ]


def _show(value: Any) -> str | None:
    """A string for a column, which holds no half characters; what is none as JSON would say it."""
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode()
