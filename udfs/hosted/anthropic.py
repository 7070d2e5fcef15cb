"""Anthropic's dialect: requests as the `params` of a message, and what is replied to them.

Shapes and codes are those of its API reference and of what its official client parses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from udfs.errors import (
    BATCH_EXPIRED,
    CANCELED,
    NO_REPLY,
    REFUSED,
    TOO_LONG_FOR_PROVIDER,
    RowError,
    SpecError,
    bad_request,
    provider_error,
)
from udfs.hosted.asked import Asked, Chat, Document, Reply, Usage
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.forms import Fitted, fit_anthropic, read_form, schema_of_choices
from udfs.hosted.openai import as_count, is_taken_out, lay_over, tell_form
from udfs.tasks.answers import Told
from udfs.tasks.writing_options import ANY_OBJECT, Form
from udfs.text.reasoning import part_text
from udfs.wire.written import EMPTY, LENGTH, STOP

FORMAT = "output_config"
_MESSAGES = "/v1/messages"
_LENGTHS = {"max_tokens", "model_context_window_exceeded"}
_OF_REQUEST = {"invalid_request_error", "not_found_error", "request_too_large"}
_SAYS_TOO_LONG = re.compile(r"too long|context (window|length)|exceeds? the (maximum|limit)|too large", re.I)
_NO_WORD = re.compile(r"[^\w.-]")


def path_of(asked: type[Asked]) -> str:
    """Where such requests go, below the base URL.

    Raises:
        SpecError: It makes no vectors.
    """
    if asked is Document:
        raise SpecError("Anthropic has no models for feature-extraction; take another engine")
    return _MESSAGES


def make_body(asked: Asked, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """What is sent; what stands in system messages is said once, before the chat."""
    if isinstance(asked, Document):
        raise SpecError("Anthropic has no models for feature-extraction; take another engine")
    way, form = asked.way, asked.way.form
    fitted = fit_form(form, endpoint)
    system = [text for role, text in asked.messages if role == "system" and text.strip()]
    messages = [{"role": role, "content": text} for role, text in asked.messages if role != "system"]
    if form and fitted.schema is None and messages:
        messages = tell_form(messages, form)
    body: dict[str, Any] = {"model": model, "max_tokens": way.max_new_tokens, "messages": messages}
    if system:
        body["system"] = "\n\n".join(system)
    if way.stop:
        body["stop_sequences"] = list(way.stop)
    if form and fitted.schema is not None:
        body[FORMAT] = {"format": {"type": "json_schema", "schema": fitted.schema}}
    return lay_over(body, endpoint)


def fit_form(form: Form, endpoint: Endpoint) -> Fitted:
    """As `udfs.hosted.openai.fit_form`."""
    taken = is_taken_out(endpoint, FORMAT) or is_taken_out(endpoint, FORMAT, "format")
    if not form or taken or form.json_schema == ANY_OBJECT:
        return Fitted(None)
    schema = schema_of_choices(form.choices) if form.choices else form.json_schema
    return Fitted(None) if schema is None else fit_anthropic(schema)


def read_line(line: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | RowError]:
    """A line of a batch's results: whose it is, and the message or why there is none."""
    custom_id, result = line.get("custom_id"), line.get("result")
    whose, told = custom_id if isinstance(custom_id, str) else None, result if isinstance(result, dict) else {}
    match told.get("type"):
        case "succeeded" if isinstance(told.get("message"), dict):
            return whose, told["message"]
        case "errored":
            return whose, read_failure(0, told.get("error"))
        case "expired":
            return whose, BATCH_EXPIRED
        case "canceled":
            return whose, CANCELED
    return whose, NO_REPLY


def read_failure(status: int, body: Any) -> RowError:
    """Why a request failed; as `udfs.hosted.openai.read_failure`."""
    held = body.get("error", body) if isinstance(body, dict) else {}
    told = held if isinstance(held, dict) else {}
    kind = _NO_WORD.sub("", str(told.get("type")))[:60]
    if kind not in _OF_REQUEST:
        return provider_error(kind)
    if kind == "request_too_large" or _SAYS_TOO_LONG.search(str(told.get("message"))):
        return TOO_LONG_FOR_PROVIDER
    return bad_request(kind)


def read_body(body: Mapping[str, Any], asked: Asked) -> Reply:
    """What was replied to a request."""
    usage = _read_usage(body.get("usage"))
    if body.get("stop_reason") == "refusal":
        return Reply(usage=usage, error=REFUSED)
    if not isinstance(asked, Chat) or not isinstance(body.get("content"), list):
        return Reply(usage=usage, error=NO_REPLY)
    parts = [part for part in body["content"] if isinstance(part, dict)]
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")
    thoughts = "\n\n".join(str(part.get("thinking") or "") for part in parts if part.get("type") == "thinking")
    way, ended = asked.way, body.get("stop_reason")
    before: str | None = thoughts or None
    if way.reasoning is not None and not thoughts:
        before, text = part_text(text)
    stopped = ended == "stop_sequence"
    finish = LENGTH if ended in _LENGTHS else EMPTY if stopped and not text.strip() else STOP
    stop = body.get("stop_sequence") if stopped else None
    told = Told(read_form(text, way.form), finish, before, stop, usage.output_tokens)
    return Reply((told,), usage=usage)


def _read_usage(told: Any) -> Usage:
    if not isinstance(told, dict):
        return Usage()
    cached, made = as_count(told.get("cache_read_input_tokens")), as_count(told.get("cache_creation_input_tokens"))
    return Usage(as_count(told.get("input_tokens")) + cached + made, as_count(told.get("output_tokens")), cached)
