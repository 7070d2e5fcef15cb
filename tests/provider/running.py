"""How a batch goes on: each look, each second and a cancel bring it nearer to its end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.provider.answers import asked_text, digest
from tests.provider.faults import HARMLESS, OF_LIVE_CALLS, OF_REQUESTS
from tests.provider.state import BY_CLIENT, Batch, State, StoredFile


class Line(NamedTuple):
    """A line of results, and what it tells: succeeded, errored, expired or canceled."""

    verdict: str
    text: str
    usage: dict[str, int]


LineMaker = Callable[[State, Batch, dict[str, Any], str], Line]  # from a request and its fault


def look(state: State, batch: Batch, make_line: LineMaker) -> Batch:
    """Let a batch go on as far as it has come when it is looked at."""
    with state.lock:
        batch.polls += 1
        late = time.time() >= batch.created + state.pace.seconds
        if not batch.ended and (batch.problems or batch.cancelled or (late and batch.polls > state.pace.polls)):
            end(state, batch, make_line)
        return batch


def cancel(state: State, batch: Batch) -> None:
    """Ask for a batch's end; what it had done by then stays done."""
    with state.lock:
        if not batch.ended and batch.cancelled is None:
            batch.cancelled = time.time()
            pace = state.pace
            shares = [batch.polls / (pace.polls + 1), (time.time() - batch.created) / (pace.seconds or 1e9)]
            batch.done_at_cancel = min(1.0, max(shares))


def end(state: State, batch: Batch, make_line: LineMaker) -> None:
    """Run a batch's requests and write down its results."""
    batch.ended_at, batch.ended = time.time(), _ending(state, batch)
    if batch.ended == "failed":
        return
    good, bad = [], []
    for request in requests_of(batch):
        key = digest(body_of(request))
        fault = _fault_of(state, batch, request, key)
        line = make_line(state, batch, request, "canceled" if fault == BY_CLIENT else fault)
        batch.counts[line.verdict] += 1
        batch.usage.update(line.usage)
        answered = line.verdict == "succeeded" and fault in HARMLESS
        state.settle(key, fault, answered=answered)
        (good if line.verdict == "succeeded" or batch.dialect == "anthropic" else bad).extend(_spoilt(line.text, fault))
    batch.lies = state.faults.first(("hidden_errors", "lying_counts"), batch.number)
    batch.results = _stored(state, batch, "output", good)
    batch.errors = None if state.faults.happens("null_ids", batch.number) else _stored(state, batch, "error", bad)


def requests_of(batch: Batch) -> Iterator[dict[str, Any]]:
    with batch.lines.open("rb") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    """The part of a request that is answered: OpenAI's `body`, Anthropic's `params`."""
    return request["body"] if "body" in request else request["params"]


def is_rejected(state: State, body: dict[str, Any]) -> bool:
    """Whether the fault of a request is that its whole batch fails."""
    return _by_word(state, body) == "rejected" or state.faults.happens("rejected", digest(body))


def live_fault(state: State, body: dict[str, Any]) -> str:
    """What befalls a request that is not in a batch."""
    with state.lock:
        key = ("live", digest(body))
        state.times_called[key] += 1
        nth = state.times_called[key]
    if nth > state.faults.at_most_a_row:
        return ""
    by_word = _by_word(state, body)
    return by_word if by_word in OF_LIVE_CALLS else state.faults.first(OF_LIVE_CALLS, *key, nth)


def _ending(state: State, batch: Batch) -> str:
    if batch.problems:
        return "failed"
    if batch.cancelled:
        return "cancelled"
    return "expired" if state.faults.happens("expired", batch.number) else "completed"


def _fault_of(state: State, batch: Batch, request: dict[str, Any], key: bytes) -> str:
    """What befalls a request of a batch; "" for nothing."""
    faults, body = state.faults, body_of(request)
    share = faults.share("done", batch.number, request["custom_id"]) if batch.ended != "completed" else 0
    if batch.ended == "cancelled" and share >= batch.done_at_cancel:
        return BY_CLIENT
    nth = state.times_asked[key]
    if nth > faults.at_most_a_row:
        return ""
    if batch.ended == "expired" and share >= faults.share("expiry", batch.number):
        return "expired"
    if faults.happens("fail_all", batch.number):
        return "errored"
    fault = _by_word(state, body) or faults.first(OF_REQUESTS, key, nth)
    return "" if batch.endpoint == "/v1/embeddings" and fault in ("refusal", "content_filter", "length") else fault


def _by_word(state: State, body: dict[str, Any]) -> str:
    if not state.faults.words:
        return ""
    text = asked_text(body)
    return next((fault for word, fault in state.faults.words.items() if word in text), "")


def _spoilt(text: str, fault: str) -> list[str]:
    """What is left of a line."""
    if fault == "malformed":
        return [(text[: len(text) // 2], "<html>502 Bad Gateway</html>", "null", "{}")[len(text) % 4]]
    return {"missing": [], "repeated": [text, text]}.get(fault, [text])


def _stored(state: State, batch: Batch, kind: str, lines: list[str]) -> StoredFile | None:
    if not lines:
        return None
    if state.faults.happens("foreign_lines", batch.number, kind):
        lines.insert(0, json.dumps({"custom_id": "somebody-elses", "result": {"type": "expired"}, "response": None}))
    if state.faults.happens("out_of_order", batch.number):
        random.Random(batch.number).shuffle(lines)
    stored = state.store(f"{batch.id}_{kind}.jsonl", "batch_output")
    with stored.path.open("wb") as out:
        out.writelines(line.encode() + b"\n" for line in lines)
    return stored
