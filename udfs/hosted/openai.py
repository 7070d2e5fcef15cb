"""OpenAI's dialect, which vLLM's servers and others speak too: requests as bodies, and what is replied to them.

Shapes and codes are those of its API reference and of what its official client parses.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from udfs.errors import (
    BATCH_EXPIRED,
    CANCELED,
    CONTENT_FILTER,
    NO_REPLY,
    REFUSED,
    TOO_LONG_FOR_PROVIDER,
    RowError,
    bad_request,
    provider_error,
)
from udfs.hosted.asked import Asked, Chat, Document, Reply, Usage
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.forms import Fitted, fit_compatible, fit_openai, instruct, read_form, schema_of_choices
from udfs.tasks.answers import Told
from udfs.tasks.writing_options import ANY_OBJECT, Form, WritingOptions
from udfs.text.reasoning import part_text
from udfs.wire.written import EMPTY, LENGTH, STOP

FORMAT = "response_format"
_CHAT, _EMBEDDINGS = "/chat/completions", "/embeddings"
_TOO_LONG = {"context_length_exceeded", "string_above_max_length", "input_too_long", "request_too_large"}
_FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
_SAYS_TOO_LONG = re.compile(r"maximum (context|input|model) length|context length|too many tokens|max_model_len", re.I)
_NO_WORD = re.compile(r"[^\w.:\[\] -]")


def path_of(asked: type[Asked]) -> str:
    """Where such requests go, below the base URL."""
    return _EMBEDDINGS if asked is Document else _CHAT


def make_body(asked: Asked, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """What is sent."""
    if isinstance(asked, Document):
        return lay_over(_embed_body(asked, model, endpoint), endpoint)
    way, form = asked.way, asked.way.form
    fitted = fit_form(form, endpoint)
    messages = [{"role": role, "content": text} for role, text in asked.messages]
    if form and fitted.schema is None:
        messages = tell_form(messages, form)
    longest = "max_tokens" if endpoint.engine == "openai-compatible" else "max_completion_tokens"
    body: dict[str, Any] = {"model": model, "messages": messages, longest: way.max_new_tokens, **_sampling(way)}
    if form and fitted.schema is not None:
        body[FORMAT] = _format(form, fitted)
    return lay_over(body, endpoint)


def fit_form(form: Form, endpoint: Endpoint) -> Fitted:
    """What an answer has to be, as the provider is told it; without a schema where the prompt has to say it."""
    if not form or is_taken_out(endpoint, FORMAT):
        return Fitted(None)
    if form.json_schema == ANY_OBJECT:
        return Fitted({})
    schema = schema_of_choices(form.choices) if form.choices else form.json_schema
    if schema is None:
        return Fitted(None)
    return fit_compatible(schema) if endpoint.engine == "openai-compatible" else fit_openai(schema)


def is_taken_out(endpoint: Endpoint, *path: str) -> bool:
    """The job has a key of the body taken out."""
    held: Any = endpoint.body or {}
    for name in path:
        if not isinstance(held, dict) or name not in held:
            return False
        held = held[name]
    return held is None


def tell_form(messages: list[dict[str, str]], form: Form) -> list[dict[str, str]]:
    """Messages the last of which says what the answer has to be."""
    *before, last = messages
    return [*before, {**last, "content": last["content"] + instruct(form)}]


def lay_over(body: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """A body with what the job lays over it, key by key at any depth; null takes a key out."""
    return _merge(body, endpoint.body or {})


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        inner = under.get(name)
        merged[name] = _merge(inner if isinstance(inner, dict) else {}, value) if isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if name not in over or value is not None}


def _embed_body(asked: Document, model: str, endpoint: Endpoint) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": asked.text, "encoding_format": "base64"}
    if endpoint.engine == "openai-compatible":  # servers differ in what they know of these two
        body["encoding_format"] = "float"
    elif asked.dimensions is not None:
        body["dimensions"] = asked.dimensions
    return body


def _sampling(way: WritingOptions) -> dict[str, Any]:
    told: dict[str, Any] = {"temperature": way.temperature}
    if way.temperature > 0:
        told["seed"] = way.seed
    given = {
        "top_p": way.top_p if way.top_p < 1 else None,
        "top_k": way.top_k or None,
        "stop": list(way.stop) or None,
        "n": way.n if way.n > 1 else None,
        "logprobs": way.logprobs or None,
        "top_logprobs": way.top_logprobs or None,
        "presence_penalty": way.presence_penalty or None,
        "frequency_penalty": way.frequency_penalty or None,
        "logit_bias": way.logit_bias,
        "min_tokens": way.min_tokens or None,
        "chat_template_kwargs": way.chat_template_kwargs,
    }
    return told | {name: value for name, value in given.items() if value is not None}


def _format(form: Form, fitted: Fitted) -> dict[str, Any]:
    if form.json_schema == ANY_OBJECT:
        return {"type": "json_object"}
    told = {"name": "answer", "schema": fitted.schema, "strict": fitted.strict}
    return {"type": "json_schema", "json_schema": told}


def read_line(line: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | RowError]:
    """A line of a batch's results or errors: whose it is, and the response's body or why there is none."""
    custom_id = line.get("custom_id")
    whose = custom_id if isinstance(custom_id, str) else None
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        status, body = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(body, dict) and not body.get("error"):
            return whose, body
        return whose, read_failure(status if isinstance(status, int) else 0, body)
    if isinstance(error, dict):
        return whose, _read_code(str(error.get("code")))
    return whose, NO_REPLY


def _read_code(code: str) -> RowError:
    match code:
        case "batch_expired":
            return BATCH_EXPIRED
        case "batch_cancelled" | "batch_canceled":
            return CANCELED
    return provider_error(_word(code))


def read_failure(status: int, body: Any) -> RowError:
    """Why a request failed; the provider's own words may quote the row, and are not kept.

    Args:
        status: As HTTP has it; 0 where it was never run.
        body: JSON, or what else came.
    """
    held = body.get("error", body) if isinstance(body, dict) else {}
    told = held if isinstance(held, dict) else {"message": str(held)}
    code, kind, param = (told.get(name) for name in ("code", "type", "param"))
    words = [_word(word) for word in (code, kind, param) if isinstance(word, str) and word]
    why = ", ".join(dict.fromkeys([*words, f"HTTP {status}" if status else "it was not run"]))
    if {code, kind} & _TOO_LONG or (status in (400, 413, 422) and _SAYS_TOO_LONG.search(str(told.get("message")))):
        return TOO_LONG_FOR_PROVIDER
    if {code, kind} & _FILTERED:
        return CONTENT_FILTER
    if 400 <= status < 500 and status not in (401, 403, 408, 409, 429):
        return bad_request(why)
    return provider_error(why)


def _word(told: str) -> str:
    return _NO_WORD.sub("", told)[:60]


def read_body(body: Mapping[str, Any], asked: Asked) -> Reply:
    """What was replied to a request."""
    usage = _read_usage(body.get("usage"))
    try:
        if isinstance(asked, Document):
            return Reply(vector=_read_vector(body["data"][0]["embedding"]), usage=usage)
        choices = sorted(body["choices"], key=lambda choice: choice.get("index") or 0)
        read = [_read_choice(choice, asked, usage) for choice in choices]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, binascii.Error):
        return Reply(usage=usage, error=NO_REPLY)
    if failed := next((each for each in read if isinstance(each, RowError)), None):
        return Reply(usage=usage, error=failed)
    answers = tuple(each for each in read if isinstance(each, Told))
    return Reply(answers, usage=usage) if len(answers) >= asked.way.n else Reply(usage=usage, error=NO_REPLY)


def _read_choice(choice: Mapping[str, Any], asked: Chat, usage: Usage) -> Told | RowError:
    message, ended = choice["message"], choice.get("finish_reason")
    if message.get("refusal"):
        return REFUSED
    if ended == "content_filter":
        return CONTENT_FILTER
    way = asked.way
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers have them
        content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    text, thoughts = content or "", message.get("reasoning_content") or message.get("reasoning")
    if way.reasoning is not None and not thoughts:
        thoughts, text = part_text(text)
    finish = LENGTH if ended == "length" else STOP if text.strip() or not way.stop else EMPTY
    tokens = usage.output_tokens // max(1, way.n)
    logprobs = _read_logprobs(choice.get("logprobs")) if way.logprobs else None
    stop = choice.get("stop_reason")
    return Told(
        read_form(text, way.form),
        finish,
        thoughts if isinstance(thoughts, str) else None,
        stop if isinstance(stop, str) else None,
        tokens,
        logprobs,
    )


def _read_logprobs(told: Any) -> list[dict[str, Any]] | None:
    if not isinstance(told, dict) or not isinstance(told.get("content"), list):
        return None
    return [
        _read_token(one) | {"top": [_read_token(top) for top in one.get("top_logprobs") or ()]}
        for one in told["content"]
    ]


def _read_token(one: Mapping[str, Any]) -> dict[str, Any]:
    raw = one.get("bytes")
    return {
        "token": str(one["token"]),
        "logprob": float(one["logprob"]),
        "bytes": str(one["token"]).encode() if raw is None else bytes(raw),
    }


def _read_vector(told: Any) -> np.ndarray:
    """Numbers as JSON has them, or as base64 of their bytes, little-endian."""
    if isinstance(told, str):
        return np.frombuffer(base64.b64decode(told, validate=True), dtype="<f4").astype(np.float32)
    return np.array(told, dtype=np.float32)


def _read_usage(told: Any) -> Usage:
    if not isinstance(told, dict):
        return Usage()
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(*(as_count(value) for value in (told.get("prompt_tokens"), told.get("completion_tokens"), cached)))


def as_count(value: Any) -> int:
    """A number of tokens; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def parse_json(line: str) -> Mapping[str, Any] | None:
    """A line of results as a mapping; None where it is none."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
