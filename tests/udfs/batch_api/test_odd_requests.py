"""Requests with what nobody expects in each of their places: each has one line, and none ends a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.odd_values import vary
from tests.request_lines import Answerer, answering
from udfs.batch_api import anthropic, openai
from udfs.batch_api.requests import Dialect, read_object

_SCHEMA = {"type": "object", "properties": {"cups": {"enum": [1]}}}
_SAMPLING: dict[str, Any] = {"temperature": 1, "top_p": 0.5}
_CALL = {"id": "1", "type": "function", "function": {"name": "brew", "arguments": "{}"}}
CHAT = {
    "model": "writer",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "x"}], "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ],
    **_SAMPLING,
    **{"max_tokens": 2, "top_k": 2, "min_tokens": 1, "n": 1, "seed": 1, "stop": ["x"], "logprobs": True},
    **{"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": 1}, "top_logprobs": 1},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": _SCHEMA}},
    **{"stream": False, "user": "u", "metadata": {"a": "b"}, "store": False, "modalities": ["text"]},
}
HELD = {
    "model": "writer",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 2,
    "tools": [{"type": "function", "function": {"name": "brew", "description": "d", "parameters": _SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "brew"}},
    "parallel_tool_calls": True,
}
RESPONSE = {
    "model": "writer",
    "instructions": "x",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "function_call", "call_id": "1", "name": "brew", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ],
    **_SAMPLING,
    **{"max_output_tokens": 2, "top_logprobs": 1, "metadata": {"a": "b"}, "store": True, "user": "u"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}},
    "tools": [{"type": "function", "name": "brew", "strict": True, "parameters": _SCHEMA}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
COMPLETION = {"model": "writer", "prompt": ["x", [5]], "max_tokens": 2, "logprobs": 1, "stop": "x", **_SAMPLING}
EMBEDDINGS = {"model": "encoder", "input": ["a", [2, 4]], "dimensions": 8, "encoding_format": "base64"}
MESSAGES = {
    "model": "writer",
    "max_tokens": 2,
    "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "brew", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
    ],
    **_SAMPLING,
    **{"top_k": 2, "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}},
    "tools": [{"name": "brew", "description": "d", "input_schema": _SCHEMA}],
    "tool_choice": {"type": "tool", "name": "brew"},
}
ALL: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "chat": ("openai-batch", {"method": "POST", "url": "/v1/chat/completions", "body": CHAT}),
    "held": ("openai-batch", {"method": "POST", "url": "/v1/chat/completions", "body": HELD}),
    "response": ("openai-batch", {"method": "POST", "url": "/v1/responses", "body": RESPONSE}),
    "completion": ("openai-batch", {"method": "POST", "url": "/v1/completions", "body": COMPLETION}),
    "embeddings": ("openai-batch", {"method": "POST", "url": "/v1/embeddings", "body": EMBEDDINGS}),
    "messages": ("anthropic-batch", {"params": MESSAGES}),
}
_TYPES = {"chat.completion": ChatCompletion, "text_completion": Completion, "response": Response}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answerer]:
    yield from answering(tmp_path_factory.mktemp("odd"))


def _read_strictly(line: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    line.encode()
    assert "\n" not in line
    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("kind", ALL)
def test_whatever_a_request_holds_is_read_or_refused(kind: str) -> None:
    dialect, line = ALL[kind]
    reader: Any = anthropic if dialect == "anthropic-batch" else openai
    assert reader.read_line({"custom_id": "a", **line}).refused is None
    for odd in vary({"custom_id": "a", **line}):
        told, wrong = read_object(json.dumps(odd))
        found = None if wrong else reader.read_line(told)
        assert found is None or (found.ask is None) == (found.refused is not None)
        if found is not None and found.refused:
            _read_strictly(reader.write_line(found, found.refused))


@pytest.mark.long
@pytest.mark.parametrize("kind", ALL)
def test_whatever_a_request_holds_it_has_one_line_that_the_client_parses(kind: str, answerer: Answerer) -> None:
    dialect, line = ALL[kind]
    lines = [json.dumps(odd) for odd in vary({"custom_id": "a", **line})]
    rows = answerer.rows(lines, dialect)
    assert len(rows) == len(lines)
    for told, row in zip(lines, rows, strict=True):
        found = _read_strictly(row["line"])
        if dialect == "anthropic-batch":
            MessageBatchIndividualResponse.model_validate_json(row["line"], strict=True)
            continue
        assert (found["response"] or {}).get("status_code") in (None, 200, 400, 404), told[:500]
        body = (found["response"] or {}).get("body", {})
        if body.get("object") in _TYPES:
            _TYPES[body["object"]].model_validate_json(json.dumps(body), strict=True)
