"""Anthropic's batch requests: messages, in and out.

Shapes, codes and limits are those of the service; sources are its API reference and what its official client parses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from udfs.batch_api.contents import make_chat, read_text
from udfs.batch_api.openai_bodies import sum_usage
from udfs.batch_api.requests import (
    Answer,
    Ask,
    Fields,
    Line,
    RefusedError,
    check_whole,
    make_id,
    show_whole,
    write_json,
)
from udfs.batch_api.tools import Call

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KINDS = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large", 500: "api_error"}
_STOP = {"stop": "end_turn", "length": "max_tokens", "empty": "end_turn"}
_NUMBER = (int, float)


def read_line(line: Mapping[str, Any]) -> Line:
    """A line's request; refused where it cannot be answered as it is meant."""
    custom_id = line.get("custom_id")
    try:
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            raise RefusedError("custom_id is not 1 to 64 letters, digits, underscores and hyphens", param="custom_id")
        params = line.get("params")
        if not isinstance(params, dict):
            raise RefusedError("params is missing, or is no object", param="params")
        if more := sorted(line.keys() - {"custom_id", "params"}):
            raise RefusedError(f"{more[0]} is unknown", param=more[0])
        ask = _read_params(params)
        check_whole(params, "params")
        return Line(custom_id, ask)
    except RefusedError as refused:
        return Line(custom_id, refused=refused)


def _read_params(params: dict[str, Any]) -> Ask:
    fields = Fields(params)
    fields.take("metadata", dict)
    fields.take("service_tier", str)
    if fields.take("stream", bool, default=False):
        raise RefusedError("stream is for answers that somebody waits for", param="stream")
    model = fields.take("model", str, required=True)
    fields.take("max_tokens", int, required=True)
    options: dict[str, Any] = {"max_new_tokens": fields.take_option("max_tokens", "max_new_tokens")}
    for name, kinds, most in (("temperature", _NUMBER, 1), ("top_p", _NUMBER, 1), ("top_k", (int,), None)):
        if (value := fields.take(name, *kinds)) is not None:
            if value < 0 or (most is not None and value > most):
                raise RefusedError(f"{name} is out of its range", param=name)
            options[name] = value
    if options.get("top_p") == 0:  # the likeliest alone
        options |= {"top_p": 1.0, "temperature": 0.0}
    if fields.take("stop_sequences", list):
        options["stop"] = fields.take_option("stop_sequences", "stop")
    fields.take_option("top_k", "top_k")
    if (fields.take("thinking", dict, default={"type": "disabled"})).get("type") != "disabled":
        raise RefusedError("thinking is not supported here", param="thinking")
    options |= _read_format(fields.take("output_config", dict, default={}))
    tools, definitions = _read_tools(fields.take("tools", list, default=[]))
    must_call, gives, one_call = _read_choice(fields.take("tool_choice", dict, default={"type": "auto"}), tools)
    system = fields.take("system", str, list)
    messages = _read_messages(fields.take("messages", list, required=True))
    fields.check_all_known()
    goes_on = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    if goes_on and messages[-1]["content"] != messages[-1]["content"].rstrip():
        raise RefusedError("messages: the last content of the assistant ends with white space", param="messages")
    if system is not None:
        messages.insert(0, {"role": "system", "content": read_text(system, "system")})
    chat = make_chat(messages, tools=definitions if gives else (), goes_on=goes_on)
    held = tools if gives and tools else None
    body_of = partial(make_message, model=str(model))
    return Ask(str(model), "write", [chat], options, body_of, held, must_call, goes_on, one_call)


def _read_format(told: dict[str, Any]) -> dict[str, Any]:
    if not told:
        return {}
    held = told.get("format")
    if told.keys() - {"format"} or not isinstance(held, dict) or held.get("type") != "json_schema":
        raise RefusedError("output_config holds more than a format of json_schema", param="output_config")
    if more := sorted(held.keys() - {"type", "schema"}):
        raise RefusedError(f"output_config.format.{more[0]} is unknown", param=f"output_config.format.{more[0]}")
    if not isinstance(held.get("schema"), dict):
        raise RefusedError("output_config.format has no schema", param="output_config.format.schema")
    return {"schema": held["schema"]}


def _read_tools(told: Sequence[Any]) -> tuple[dict[str, Mapping[str, Any]], list[dict[str, Any]]]:
    tools: dict[str, Mapping[str, Any]] = {}
    definitions = []
    for place, tool in enumerate(told):
        is_own = isinstance(tool, dict) and tool.get("type", "custom") in ("custom", None)
        if not is_own or not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), dict):
            raise RefusedError(f"tools.{place} is no tool with a name and an input_schema", param=f"tools.{place}")
        fields = Fields(tool, f"tools.{place}")
        name, schema = fields.take("name"), fields.take("input_schema")
        function = {"name": name, "description": fields.take("description", str, default=""), "parameters": schema}
        fields.ignore("type", "cache_control", "strict")
        fields.check_all_known()
        tools[name] = schema
        definitions.append({"type": "function", "function": function})
    return tools, definitions


def _read_choice(told: Mapping[str, Any], tools: Mapping[str, Any]) -> tuple[tuple[str, ...], bool, bool]:
    """Functions of which one has to be called, whether the model hears of any, and whether it may call one alone."""
    fields = Fields(dict(told), "tool_choice")
    kind, name = fields.take("type", str), fields.take("name", str)
    one = bool(fields.take("disable_parallel_tool_use", bool))
    fields.check_all_known()
    match kind:
        case "auto":
            return (), True, one
        case "none":
            return (), False, one
        case "any" if tools:
            return tuple(tools), True, one
        case "tool" if name in tools:
            return (str(name),), True, one
    raise RefusedError("tool_choice names no tool that there is", param="tool_choice")


def _read_messages(told: Sequence[Any]) -> list[dict[str, Any]]:
    if not told:
        raise RefusedError("messages: at least one is required", param="messages")
    messages: list[dict[str, Any]] = []
    for place, message in enumerate(told):
        param = f"messages.{place}"
        if not isinstance(message, dict) or message.get("role") not in ["user", "assistant"]:
            raise RefusedError(f"{param}.role is neither user nor assistant", param=param)
        fields = Fields(message, param)
        fields.take("role")
        content = fields.take("content", str, list, required=True)
        fields.check_all_known()
        messages += _read_message(message["role"], content, f"{param}.content")
    return messages


def _read_message(role: str, content: str | list[Any], param: str) -> list[dict[str, Any]]:
    """A message as one or, with results of tools in it, several."""
    if isinstance(content, str):
        return [{"role": role, "content": read_text(content, param)}]
    texts = [
        part for part in content if not isinstance(part, dict) or part.get("type") not in ("tool_use", "tool_result")
    ]
    calls = [_read_use(part, param) for part in content if isinstance(part, dict) and part.get("type") == "tool_use"]
    results = [part for part in content if isinstance(part, dict) and part.get("type") == "tool_result"]
    if (calls and role != "assistant") or (results and role != "user"):
        raise RefusedError(f"{param} has a block that is not for the {role}", param=param)
    messages = [_read_result(part, param) for part in results]
    if texts or calls or not results:
        made: dict[str, Any] = {"role": role, "content": read_text(texts, param)}
        messages.append(made | ({"tool_calls": calls} if calls else {}))
    return messages


def _read_use(part: Mapping[str, Any], param: str) -> dict[str, Any]:
    fields = Fields(dict(part), param)
    name, given = fields.take("name", str, required=True), fields.take("input", dict, required=True)
    called = fields.take("id", str, default="")
    fields.ignore("type", "cache_control")
    fields.check_all_known()
    return {"id": called, "type": "function", "function": {"name": name, "arguments": given}}


def _read_result(part: Mapping[str, Any], param: str) -> dict[str, Any]:
    fields = Fields(dict(part), param)
    text = read_text(fields.take("content", str, list, default=""), f"{param}.content")
    called = fields.take("tool_use_id", str, default="")
    fields.take("is_error", bool)
    fields.ignore("type", "cache_control")
    fields.check_all_known()
    return {"role": "tool", "content": text, "tool_call_id": called}


def make_message(answers: Sequence[Answer], *, model: str) -> dict[str, Any]:
    """A whole `message`."""
    (answer,) = answers
    (one,) = answer.candidates
    calls: Sequence[Call] = one.get("calls") or ()
    content: list[dict[str, Any]] = []
    if one["text"] or not calls:
        content.append({"type": "text", "text": one["text"], "citations": None})
    content += [
        {"type": "tool_use", "id": make_id("toolu_"), "name": call.name, "input": json.loads(call.arguments)}
        for call in calls
    ]
    reason = _STOP[one["finish_reason"]]
    if one["stop_sequence"] is not None:
        reason = "stop_sequence"
    elif calls and reason == "end_turn":
        reason = "tool_use"
    read, wrote, cached = sum_usage(answers)
    return {
        "id": make_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": one["stop_sequence"],
        "usage": {
            "input_tokens": read - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": wrote,
            "service_tier": "batch",
        },
    }


def write_line(line: Line, outcome: dict[str, Any] | RefusedError) -> str:
    """The line that answers a line."""
    custom_id = line.custom_id
    shown = "" if custom_id is None else custom_id if isinstance(custom_id, str) else json.dumps(custom_id)
    if not isinstance(outcome, RefusedError):
        result: dict[str, Any] = {"type": "succeeded", "message": outcome}
    elif outcome.code == "batch_expired":
        result = {"type": "expired"}
    else:
        kind = outcome.kind or _KINDS.get(outcome.status or 400, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": outcome.message}, "request_id": None}
        result = {"type": "errored", "error": error}
    return write_json({"custom_id": show_whole(shown), "result": result})
