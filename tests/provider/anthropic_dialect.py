"""Anthropic's message batches, messages and models.

Source: the types of the client `anthropic`; the platform's guide to batch processing.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

from tests.provider import answers, rules, running
from tests.provider.calls import Call, Refusal, Reply, are_messages, befall, page_limit
from tests.provider.running import Line, body_of
from tests.provider.state import Batch, State

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def refuse(refusal: Refusal) -> Reply:
    """A refusal in Anthropic's words."""
    return Reply(_error(refusal), refusal.status, refusal.headers)


def answer(state: State, call: Call) -> Reply:
    """Reply to one call."""
    if "anthropic-version" not in call.headers:
        raise Refusal(400, "anthropic-version: header is required")
    match call.method, call.path:
        case "POST", ("messages", "batches"):
            return _create(state, call)
        case "GET", ("messages", "batches"):
            return _page(state, call)
        case "GET", ("messages", "batches", id_):
            return Reply(show(running.look(state, _found(state, id_), _line), call.base))
        case "DELETE", ("messages", "batches", id_):
            return _delete(state, _found(state, id_))
        case "GET", ("messages", "batches", id_, "results"):
            return _results(_found(state, id_))
        case "POST", ("messages", "batches", id_, "cancel"):
            return _cancel(state, _found(state, id_), call.base)
        case "POST", ("messages", "count_tokens"):
            return Reply({"input_tokens": answers.asked_tokens(call.json())})
        case "POST", ("messages",):
            params = call.json()
            return Reply(_answered(state, params, running.live_fault(state, params), strict=False))
        case "GET", ("models",):
            data = [_model(name) for name in sorted(state.models or ("writer",))]
            ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
            return Reply({"data": data, "has_more": False, **ends})
        case "GET", ("models", name):
            check_model(state, name)
            return Reply(_model(name))
    raise Refusal(404, "Not found")


def check_params(state: State, params: Any, *, strict: bool) -> None:
    """Refuse what a message, or, if `strict`, a request of a batch may not ask."""
    if not isinstance(params, dict):
        raise Refusal(400, "params: Input should be an object")
    for name, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if not isinstance(params.get(name), kind):
            raise Refusal(400, f"{name}: Field required")
    if params["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: Input should be greater than or equal to 1")
    if not are_messages(params["messages"]):
        raise Refusal(400, "messages: at least one message is required, and each has a role")
    if any(
        not answers.text_of(m.get("content")).strip() and isinstance(m.get("content"), str) for m in params["messages"]
    ):
        raise Refusal(400, "messages: text content blocks must be non-empty")
    check_model(state, params["model"])
    rules.check_unsupported(params, state.without)
    if strict:
        rules.check_anthropic(params)
    if (asked := answers.asked_tokens(params)) > state.limits.context_tokens:
        raise Refusal(400, f"prompt is too long: {asked} tokens > {state.limits.context_tokens} maximum")


def check_model(state: State, name: str) -> None:
    if state.models is not None and name not in state.models:
        raise Refusal(404, f"model: {name}")


def _create(state: State, call: Call) -> Reply:
    if len(call.raw) > state.limits.bytes:
        raise Refusal(413, "Request exceeds the maximum size")
    requests = call.json().get("requests")
    if not isinstance(requests, list) or not requests:
        raise Refusal(400, "requests: List should have at least 1 item after validation, not 0")
    if len(requests) > state.limits.requests:
        raise Refusal(400, f"requests: List should have at most {state.limits.requests} items")
    seen: set[str] = set()
    for number, request in enumerate(requests):
        _check_request(request, number, seen)
    tokens = sum(answers.asked_tokens(request["params"]) for request in requests)
    with state.lock:
        if state.enqueued_tokens("") + tokens > state.limits.enqueued_tokens:
            raise Refusal(429, "This request would exceed the limit of tokens in your organization's queue.")
        state.made_batches += 1
        batch = _new_batch(state, requests, tokens)
        state.accept(batch, (request["params"] for request in requests))
    return Reply(show(batch, call.base))


def _new_batch(state: State, requests: list[Any], tokens: int) -> Batch:
    for number, request in enumerate(requests):
        if running.is_rejected(state, request["params"]):
            at = "" if state.faults.happens("unnamed", state.made_batches) else f"requests.{number}.params: "
            raise Refusal(400, f"{at}This request cannot be processed.")
    id_ = state.new_id("msgbatch_")
    lines = state.folder / f"{id_}.run"
    with lines.open("wb") as out:
        out.writelines(answers.canonical(request) + b"\n" for request in requests)
    return Batch(
        id=id_,
        number=state.made_batches,
        dialect="anthropic",
        lines=lines,
        total=len(requests),
        tokens=tokens,
        created=time.time(),
    )


def _check_request(request: Any, number: int, seen: set[str]) -> None:
    at = f"requests.{number}"
    if not isinstance(request, dict) or not isinstance(request.get("params"), dict):
        raise Refusal(400, f"{at}.params: Field required")
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
        raise Refusal(400, f"{at}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
    if custom_id in seen:
        raise Refusal(400, f"{at}.custom_id: '{custom_id}' is not unique")
    if request["params"].get("stream"):
        raise Refusal(400, f"{at}.params.stream: not supported in batches")
    seen.add(custom_id)


def _line(state: State, batch: Batch, request: dict[str, Any], verdict: str) -> Line:
    """A line of a batch's results."""
    params, told = body_of(request), {"custom_id": request["custom_id"]}
    if verdict in ("canceled", "expired"):
        return Line(verdict, _dumped({**told, "result": {"type": verdict}}), {})
    try:
        message = _answered(state, params, verdict, strict=True)
    except Refusal as refusal:
        return Line("errored", _dumped({**told, "result": {"type": "errored", "error": _error(refusal)}}), {})
    message["usage"]["service_tier"] = "batch"
    return Line("succeeded", _dumped({**told, "result": {"type": "succeeded", "message": message}}), {})


def _answered(state: State, params: dict[str, Any], fault: str, *, strict: bool) -> dict[str, Any]:
    check_params(state, params, strict=strict)
    befall(fault, params)
    return answers.message(params, "refusal" if fault == "content_filter" else fault)


def _results(batch: Batch) -> Reply:
    if not batch.results:
        raise Refusal(404, f"Message Batch {batch.id} has no results.")
    return Reply(batch.results.path)


def _cancel(state: State, batch: Batch, base: str) -> Reply:
    if batch.ended:
        raise Refusal(409, f"Batch {batch.id} cannot be canceled because it has already ended.")
    running.cancel(state, batch)
    return Reply(show(batch, base))


def _delete(state: State, batch: Batch) -> Reply:
    if not batch.ended:
        raise Refusal(409, f"Batch {batch.id} cannot be deleted while it is in progress.")
    del state.batches[batch.id]
    return Reply({"id": batch.id, "type": "message_batch_deleted"})


def show(batch: Batch, base: str) -> dict[str, Any]:
    """A batch as its client sees it; what became of its requests is told at its end."""
    ended = bool(batch.ended)
    url = f"{base}/v1/messages/batches/{batch.id}/results" if ended else None
    counts = {name: batch.counts[name] for name in ("succeeded", "errored", "canceled", "expired")}
    if batch.lies:
        counts = {**counts, "succeeded": batch.total, "errored": 0}
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else ("canceling" if batch.cancelled else "in_progress"),
        "request_counts": {"processing": 0 if ended else batch.total, **counts},
        "created_at": _when(batch.created),
        "expires_at": _when(batch.created + 86_400),
        "ended_at": _when(batch.ended_at),
        "cancel_initiated_at": _when(batch.cancelled),
        "archived_at": None,
        "results_url": url,
    }


def _page(state: State, call: Call) -> Reply:
    """A page of the list of batches, newest first."""
    limit = page_limit(call, usual=20, most=1000)
    rows = [show(running.look(state, batch, _line), call.base) for batch in state.newest_first("anthropic")]
    ids = [row["id"] for row in rows]
    for name in ("after_id", "before_id"):
        if name in call.query and call.query[name] not in ids:
            raise Refusal(404, f"{name}: {call.query[name]} not found")
    if "before_id" in call.query:
        before = rows[: ids.index(call.query["before_id"])]
        rest, page = before, before[-limit:]
    else:
        rest = rows[ids.index(call.query["after_id"]) + 1 :] if "after_id" in call.query else rows
        page = rest[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return Reply({"data": page, "has_more": len(rest) > len(page), **ends})


def _found(state: State, id_: str) -> Batch:
    batch = state.batches.get(id_)
    if batch is None or batch.dialect != "anthropic":
        raise Refusal(404, f"Message Batch {id_} not found.")
    return batch


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = refusal.kind or _KINDS.get(refusal.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.text}, "request_id": "req_test"}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "type": "model", "display_name": name, "created_at": "2026-01-01T00:00:00Z"}


def _when(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds is not None else None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
