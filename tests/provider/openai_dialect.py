"""OpenAI's files, batches, chat completions, embeddings and models.

Source: the types of the client `openai`; the platform's guide to batches.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from tests.provider import answers, rules, running
from tests.provider.calls import Call, Refusal, Reply, are_messages, befall, page_limit
from tests.provider.running import Line, body_of
from tests.provider.state import Batch, State, StoredFile

ENDPOINTS = {"/v1/chat/completions": answers.chat, "/v1/embeddings": answers.embeddings}
_KINDS = {429: "rate_limit_exceeded"}


def refuse(refusal: Refusal) -> Reply:
    """A refusal in OpenAI's words."""
    usual = "server_error" if refusal.status >= 500 else "invalid_request_error"
    kind = refusal.kind or _KINDS.get(refusal.status, usual)
    error = {"message": refusal.text, "type": kind, "param": refusal.param, "code": refusal.code}
    return Reply({"error": error}, refusal.status, refusal.headers)


def answer(state: State, call: Call) -> Reply:
    """Reply to one call."""
    match call.method, call.path:
        case "POST", ("files",):
            return _upload(state, call)
        case "GET", ("files",):
            return _page(_files(state, call), call, most=10_000, usual=10_000)
        case "GET", ("files", id_):
            return Reply(_file(_found(state.files, id_)))
        case "GET", ("files", id_, "content"):
            return Reply(_found(state.files, id_).path)
        case "DELETE", ("files", id_):
            _found(state.files, id_)
            del state.files[id_]  # what it held stays on disk, for the batches that run it
            return Reply({"id": id_, "object": "file", "deleted": True})
        case "POST", ("batches",):
            return _create(state, call)
        case "GET", ("batches",):
            listed = [show(state, running.look(state, batch, _line)) for batch in state.newest_first("openai")]
            return _page(listed, call, most=100, usual=20)
        case "GET", ("batches", id_):
            return Reply(show(state, running.look(state, _found(state.batches, id_), _line)))
        case "POST", ("batches", id_, "cancel"):
            return _cancel(state, _found(state.batches, id_))
        case "POST", ("chat", "completions"):
            return _live(state, call, "/v1/chat/completions")
        case "POST", ("embeddings",):
            return _live(state, call, "/v1/embeddings")
        case "GET", ("models",):
            return Reply({"object": "list", "data": [_model(name) for name in sorted(state.models or ("writer",))]})
        case "GET", ("models", *names):
            name = "/".join(names)
            check_model(state, name)
            return Reply(_model(name))
    raise Refusal(404, f"Unknown request URL: {call.method} /{'/'.join(call.path)}.", code="unknown_url")


def check_body(state: State, endpoint: str, body: Any, *, strict: bool) -> None:
    """Refuse what a live call, or, if `strict`, a line of a batch may not ask."""
    if not isinstance(body, dict):
        raise Refusal(400, "The body of a request is a JSON object.")
    if not isinstance(body.get("model"), str):
        raise Refusal(400, "you must provide a model parameter")
    check_model(state, body["model"])
    needed = "input" if endpoint == "/v1/embeddings" else "messages"
    if not body.get(needed) or (needed == "messages" and not are_messages(body[needed])):
        raise Refusal(400, f"Missing required parameter: '{needed}'.", code="missing_required_parameter", param=needed)
    limit = body.get("max_completion_tokens", body.get("max_tokens", 1))
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise Refusal(400, "max_tokens must be at least 1", code="integer_below_min_value", param="max_tokens")
    rules.check_unsupported(body, state.without)
    if strict:
        rules.check_openai(body, endpoint)
    if (asked := answers.asked_tokens(body)) > state.limits.context_tokens:
        text = f"This model's maximum context length is {state.limits.context_tokens} tokens; {asked} were asked."
        raise Refusal(400, text, code="context_length_exceeded", param=needed)


def check_model(state: State, name: str) -> None:
    if state.models is not None and name not in state.models:
        raise Refusal(
            404, f"The model `{name}` does not exist or you do not have access to it.", code="model_not_found"
        )


def _upload(state: State, call: Call) -> Reply:
    if call.upload is None:
        raise Refusal(400, "'file' is a required property")
    if call.form.get("purpose") not in ("batch", "user_data", "fine-tune", "assistants", "vision", "evals"):
        raise Refusal(400, f"'{call.form.get('purpose')}' is not one of the purposes of files", param="purpose")
    if call.upload.stat().st_size > state.limits.bytes:
        raise Refusal(400, "File is too large.")
    with state.lock:  # a list must not show it before it lies there
        stored = state.store(call.filename, call.form["purpose"])
        shutil.move(call.upload, stored.path)
    return Reply(_file(stored))


def _create(state: State, call: Call) -> Reply:
    asked = call.json()
    if asked.get("completion_window") != "24h":
        raise Refusal(400, "completion_window must be '24h'", param="completion_window")
    if asked.get("endpoint") not in ENDPOINTS:
        raise Refusal(400, f"Invalid value for endpoint: {asked.get('endpoint')!r}", param="endpoint")
    told = asked.get("metadata") or {}
    if len(told) > 16 or any(len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in told.items()):
        raise Refusal(400, "metadata: at most 16 pairs of 64 and 512 characters", param="metadata")
    stored = _found(state.files, str(asked.get("input_file_id")))
    if stored.purpose != "batch":
        raise Refusal(400, "The purpose of the input file is not 'batch'.", param="input_file_id")
    with state.lock:
        batch = _new_batch(state, asked, stored)
        state.accept(batch, (request["body"] for request in running.requests_of(batch)))
    return Reply(show(state, batch))


def _new_batch(state: State, asked: dict[str, Any], stored: StoredFile) -> Batch:
    problems, total, tokens, model = _read(state, asked["endpoint"], stored.path)
    state.made_batches += 1
    number = state.made_batches
    if state.faults.happens("unnamed", number):
        problems = [{**problem, "line": None, "param": None} for problem in problems]
    if state.faults.happens("no_money_left", number):
        problems = [_problem("billing_hard_limit_reached", "Billing hard limit has been reached.")]
    if not problems and state.enqueued_tokens(model) + tokens > state.limits.enqueued_tokens:
        limit = f"Limit: {state.limits.enqueued_tokens:,} enqueued tokens."
        text = f"Enqueued token limit reached for {model} in organization org-test. {limit} Please try again later."
        problems = [_problem("token_limit_exceeded", text)]
    return Batch(
        id=state.new_id("batch_"),
        number=number,
        dialect="openai",
        lines=stored.path,
        total=0 if problems else total,
        tokens=0 if problems else tokens,
        created=time.time(),
        model=model,
        endpoint=asked["endpoint"],
        metadata=asked.get("metadata"),
        input_file=stored.id,
        problems=problems,
    )


def _read(state: State, endpoint: str, path: Path) -> tuple[list[dict[str, Any]], int, int, str]:
    """What is wrong with a batch's file, how many requests and tokens it has, and its model."""
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    total = tokens = inputs = 0
    model = ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            total += 1
            try:
                request = _checked(line, endpoint, seen, model)
            except _Bad as bad:
                problems.append(_problem(bad.args[0], bad.args[1], number, bad.args[2]))
                continue
            model = request["body"]["model"]
            if running.is_rejected(state, request["body"]):
                problems.append(_problem("invalid_request", "This line cannot be processed.", number, "body"))
            tokens += answers.asked_tokens(request["body"])
            inputs += len(answers.inputs_of(request["body"]))
    if not total:
        problems = [_problem("empty_file", "The input file is empty.")]
    if model and state.models is not None and model not in state.models:
        text = f"The provided model '{model}' is not supported by the Batch API."
        problems = [_problem("model_not_found", text, 1, "body.model")]
    if total > state.limits.requests or inputs > state.limits.embedding_inputs:
        problems = [_problem("too_many_tasks", f"The batch has more than {state.limits.requests} requests or inputs.")]
    return problems[:100], total, tokens, model


class _Bad(Exception):
    """A line for which its whole batch fails: code, message, param."""


def _checked(line: bytes, endpoint: str, seen: set[str], model: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        raise _Bad("invalid_json_line", "This line is not parseable as valid JSON.", None) from None
    if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
        raise _Bad("invalid_request", "Each line must be an object with a body.", "body")
    for name in ("custom_id", "method", "url"):
        if not isinstance(request.get(name), str) or not request[name]:
            raise _Bad("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    if request["custom_id"] in seen:
        raise _Bad("duplicate_custom_id", "The custom_id of this request is that of another one.", "custom_id")
    seen.add(request["custom_id"])
    if request["method"] != "POST":
        raise _Bad("invalid_method", "Only POST is supported.", "method")
    if request["url"] != endpoint:
        raise _Bad("mismatched_url", "The url of this request is not the batch's endpoint.", "url")
    asked = request["body"].get("model")
    if not isinstance(asked, str):
        raise _Bad("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
    if model and asked != model:
        raise _Bad("mismatched_model", f"The model '{asked}' is not that of the rest of the batch.", "body.model")
    return request


def _problem(code: str, text: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": text, "line": line, "param": param}


def _line(state: State, batch: Batch, request: dict[str, Any], verdict: str) -> Line:
    """A line of the output file, or of the error file."""
    told: dict[str, Any] = {
        "id": f"batch_req_{answers.digest(request['custom_id']).hex()}",
        "custom_id": request["custom_id"],
    }
    if verdict in ("canceled", "expired"):
        code = {"canceled": "batch_cancelled", "expired": "batch_expired"}[verdict]
        text = "This request could not be executed before the completion window expired or the batch was cancelled."
        return Line(verdict, _dumped({**told, "response": None, "error": {"code": code, "message": text}}), {})
    try:
        reply = Reply(_answered(state, batch.endpoint, body_of(request), verdict, strict=True))
    except Refusal as refusal:
        reply = refuse(refusal)
    response = {"status_code": reply.status, "request_id": f"req_{told['id'][-32:]}", "body": reply.body}
    if not reply.status:
        response = {"status_code": 0, "request_id": "", "body": (None, "", {})[len(told["custom_id"]) % 3]}
        return Line("errored", _dumped({**told, "response": response, "error": None}), {})
    found = reply.body.get("usage") or {}
    usage = {
        "input": found.get("prompt_tokens", 0),
        "output": found.get("completion_tokens", 0),
        "cached": found.get("prompt_tokens_details", {}).get("cached_tokens", 0),
    }
    text = _dumped({**told, "response": response, "error": None})
    return Line("succeeded" if reply.status == 200 else "errored", text, usage)


def _answered(state: State, endpoint: str, body: dict[str, Any], fault: str, *, strict: bool) -> dict[str, Any]:
    check_body(state, endpoint, body, strict=strict)
    befall(fault, body)
    return answers.embeddings(body) if endpoint == "/v1/embeddings" else answers.chat(body, fault)


def _live(state: State, call: Call, endpoint: str) -> Reply:
    body = call.json()
    return Reply(_answered(state, endpoint, body, running.live_fault(state, body), strict=False))


def _cancel(state: State, batch: Batch) -> Reply:
    if batch.ended:
        raise Refusal(409, f"Cannot cancel a batch with status '{batch.ended}'.")
    running.cancel(state, batch)
    return Reply(show(state, batch))


def show(state: State, batch: Batch) -> dict[str, Any]:
    """A batch as its client sees it."""
    going = "in_progress" if batch.polls else "validating"
    if batch.polls > 1 and batch.polls == state.pace.polls:
        going = "finalizing"
    ended_at = int(batch.ended_at) if batch.ended_at else None
    usage, no_file = batch.usage, "" if batch.ended and state.faults.happens("empty_ids", batch.number) else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": batch.problems} if batch.ended == "failed" else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.ended or ("cancelling" if batch.cancelled else going),
        "output_file_id": batch.results.id if batch.results else no_file,
        "error_file_id": batch.errors.id if batch.errors else no_file,
        "created_at": int(batch.created),
        "in_progress_at": int(batch.created) if batch.polls and not batch.problems else None,
        "expires_at": int(batch.created) + 86_400,
        "finalizing_at": ended_at if batch.ended == "completed" else None,
        "completed_at": ended_at if batch.ended == "completed" else None,
        "failed_at": ended_at if batch.ended == "failed" else None,
        "expired_at": ended_at if batch.ended == "expired" else None,
        "cancelling_at": int(batch.cancelled) if batch.cancelled else None,
        "cancelled_at": ended_at if batch.ended == "cancelled" else None,
        "request_counts": _counts(batch),
        "metadata": batch.metadata,
        "usage": {
            "input_tokens": usage["input"],
            "input_tokens_details": {"cached_tokens": usage["cached"]},
            "output_tokens": usage["output"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["input"] + usage["output"],
        },
    }


def _counts(batch: Batch) -> dict[str, int]:
    done = sum(batch.counts.values())
    good = {"hidden_errors": done, "lying_counts": done // 2}.get(batch.lies, batch.counts["succeeded"])
    return {
        "total": bool(batch.polls) * batch.total + (batch.lies == "lying_counts"),
        "completed": good,
        "failed": done - good,
    }


def _files(state: State, call: Call) -> list[dict[str, Any]]:
    with state.lock:
        found = list(state.files.values())
    shown = [_file(f) for f in found if call.query.get("purpose") in (None, f.purpose)]
    return shown if call.query.get("order") == "asc" else shown[::-1]


def _file(stored: StoredFile) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.bytes,
        "created_at": stored.created,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
    }


def _page(rows: list[dict[str, Any]], call: Call, *, most: int, usual: int) -> Reply:
    """A page of a list, after the row that the client has seen last."""
    limit = page_limit(call, usual=usual, most=most)
    ids = [row["id"] for row in rows]
    after = call.query.get("after")
    if after is not None and after not in ids:
        raise Refusal(404, f"No such object: {after}", param="after")
    rest = rows[ids.index(after) + 1 :] if after is not None else rows
    page = rest[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return Reply({"object": "list", "data": page, **ends, "has_more": len(rest) > limit})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": answers.CREATED, "owned_by": "test"}


def _found(kept: dict[str, Any], id_: str) -> Any:
    if id_ not in kept or getattr(kept[id_], "dialect", "openai") != "openai":
        raise Refusal(404, f"No such object: {id_}", param="id")
    return kept[id_]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
