"""OpenAI's batch lines: chats, completions, embeddings and responses, in and out.

Shapes, codes and limits are those of the service; sources are its API reference and what its official client parses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from udfs.batch_api.contents import make_chat, read_arguments, read_text
from udfs.batch_api.openai_bodies import embedding_list, make_chat_body, make_completion_body, make_response_body
from udfs.batch_api.requests import (
    Ask,
    Fields,
    Line,
    RefusedError,
    check_known,
    check_text,
    check_whole,
    make_id,
    write_json,
)

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_IGNORED = {
    **dict.fromkeys(("user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"), str),
    "metadata": dict,
}
_OF_LINE = {"custom_id", "method", "url", "body"}
_ERROR_KINDS = {500: "server_error", 503: "server_error"}
_MOST_INPUTS = 2048
_COMPLETION_TOKENS = 16  # of a completion that says nothing else


def read_line(line: Mapping[str, Any]) -> Line:
    """A line's request; refused where it cannot be answered as it is meant."""
    custom_id, url = line.get("custom_id"), str(line.get("url", ""))
    try:
        check_custom_id(line)
        body = _read_body(line)
        ask = _endpoint(url)(body)
        check_whole(body, "body")
        return Line(custom_id, ask, url=url)
    except RefusedError as refused:
        return Line(custom_id, refused=refused, url=url)


def check_custom_id(line: Mapping[str, Any]) -> None:
    """Refuse a line that nobody could match with its answer.

    Raises:
        RefusedError: It has no id, or one that is no string, or is blank.
    """
    if line.get("custom_id") is None:
        raise RefusedError("custom_id is missing", status=0, code="missing_required_parameter", param="custom_id")
    if not isinstance(line["custom_id"], str):
        raise RefusedError("custom_id is no string", status=0, code="invalid_custom_id", param="custom_id")
    if not line["custom_id"].strip():
        raise RefusedError("custom_id is blank", status=0, code="invalid_custom_id", param="custom_id")


def _read_body(line: Mapping[str, Any]) -> dict[str, Any]:
    if line.get("method", "POST") != "POST":
        raise RefusedError("method is not POST", code="invalid_method", param="method")
    body = line.get("body")
    if not isinstance(body, dict):
        raise RefusedError("body is missing, or is no object", code="invalid_request", param="body")
    check_known(line, _OF_LINE, "")
    return body


def _endpoint(url: str) -> Callable[[dict[str, Any]], Ask]:
    known = {
        "/chat/completions": _read_chat,
        "/completions": _read_completion,
        "/embeddings": _read_embeddings,
        "/responses": _read_response,
    }
    path = url.rstrip("/").removeprefix("/v1")
    if path not in known:
        told = f"there is no {url!r:.80} here; there are {', '.join(f'/v1{name}' for name in known)}"
        raise RefusedError(told, status=404, code="invalid_url", param="url")
    return known[path]


def _read_shared(fields: Fields) -> str:
    """The model, and what is refused of every endpoint."""
    for name, kind in _IGNORED.items():
        fields.take(name, kind)
    if not all(isinstance(value, str) for value in fields.values.get("metadata", {}).values()):
        raise RefusedError("metadata has a value that is no string", code="invalid_type", param="metadata")
    if fields.take("stream", bool, default=False):
        raise RefusedError(
            "stream is for answers that somebody waits for", code="unsupported_parameter", param="stream"
        )
    model = fields.take("model", str, required=True)
    return str(model)


_Number = (int, float)


def _take_sampling(fields: Fields, *, longest: Sequence[str]) -> dict[str, Any]:
    """What decides how tokens are picked, as options of a row."""
    options: dict[str, Any] = {}
    for name in longest:
        if (value := fields.take_option(name, "max_new_tokens", int)) is not None:
            options["max_new_tokens"] = value
    if (value := fields.take("temperature", *_Number)) is not None:
        if not 0 <= value <= 2:
            raise RefusedError("temperature is not from 0 to 2", code="invalid_value", param="temperature")
        options["temperature"] = value
    if fields.values.get("top_p") == 0 and fields.take("top_p", *_Number) == 0:  # the likeliest alone
        options |= {"top_p": 1.0, "temperature": 0.0}
    elif (value := fields.take_option("top_p", "top_p", *_Number)) is not None:
        options["top_p"] = value
    for name in ("top_k", "min_tokens"):
        if (value := fields.take_option(name, name, int)) is not None:
            options[name] = value
    return options


def _take_penalties(fields: Fields) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, kinds in (
        ("n", (int,)),
        ("seed", (int,)),
        ("presence_penalty", _Number),
        ("frequency_penalty", _Number),
        ("logit_bias", (dict,)),
    ):
        if (value := fields.take_option(name, name, *kinds)) is not None:
            options[name] = value
    if fields.take("stop", str, list):
        options["stop"] = fields.take_option("stop", "stop")
    return options


def _read_chat(body: dict[str, Any]) -> Ask:
    fields = Fields(body)
    model = _read_shared(fields)
    one_call = not fields.take("parallel_tool_calls", bool, default=True)
    _refuse_unless(fields, "store", bool, {False})
    if (modalities := fields.take("modalities", list)) not in (None, ["text"]):
        raise RefusedError(f"modalities are {modalities!r:.60}, and the model writes text alone", param="modalities")
    options = _take_sampling(fields, longest=("max_tokens", "max_completion_tokens")) | _take_penalties(fields)
    if fields.take("logprobs", bool):
        options["logprobs"] = True
    if (tops := fields.take_option("top_logprobs", "top_logprobs", int)) is not None:
        options["top_logprobs"] = tops
    options |= _read_format(fields.take("response_format", dict), "response_format", nested=True)
    tools, definitions = _read_tools(fields.take("tools", list, default=[]), "tools", nested=True)
    must_call, gives = _read_choice(fields.take("tool_choice", str, dict), tools, "tool_choice", nested=True)
    messages = _read_messages(fields.take("messages", list, required=True))
    fields.check_all_known()
    goes_on = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    chat = make_chat(messages, tools=definitions if gives else (), goes_on=goes_on)
    body_of = partial(make_chat_body, model=model, logprobs=bool(options.get("logprobs")))
    held = tools if gives and tools else None
    return Ask(model, "write", [chat], options, body_of, held, must_call, goes_on, one_call)


def _refuse_unless(fields: Fields, name: str, kind: type, allowed: set[Any]) -> None:
    if (value := fields.take(name, kind)) is not None and value not in allowed:
        raise RefusedError(f"{name} is not supported here", code="unsupported_parameter", param=name)


def _read_messages(told: Sequence[Any]) -> list[dict[str, Any]]:
    if not told:
        raise RefusedError("messages is empty", code="invalid_value", param="messages")
    messages = []
    for place, message in enumerate(told):
        param = f"messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in list(_ROLES):
            raise RefusedError(
                f"{param} has no role out of {', '.join(_ROLES)}", code="invalid_value", param=f"{param}.role"
            )
        messages.append(_read_message(Fields(message, param), str(message["role"])))
    return messages


def _read_message(fields: Fields, role: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": _ROLES[role]}
    fields.take("role")
    content = fields.take("content")
    calls = fields.take("tool_calls", list, default=[]) if role == "assistant" else []
    if role == "assistant":
        fields.ignore("refusal", "annotations", "audio", "function_call")
        if fields.values.get("function_call") or fields.values.get("audio"):
            raise RefusedError(f"{fields.where} is of a kind that is not supported here", param=fields.where)
    if content is None and not calls:
        raise RefusedError(f"{fields.where} has no content", code="invalid_value", param=fields.name("content"))
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    made["content"] = "" if content is None else read_text(content, fields.name("content"), kinds=kinds)
    if calls:
        made["tool_calls"] = [_read_call(call, f"{fields.name('tool_calls')}[{n}]") for n, call in enumerate(calls)]
    if role == "tool":
        made["tool_call_id"] = fields.take("tool_call_id", str, required=True)
    if (name := fields.take("name", str)) is not None:
        made["name"] = check_text(name, fields.name("name"))
    fields.check_all_known()
    return made


def _read_call(call: Any, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusedError(f"{param} is no call of a function", code="invalid_value", param=param)
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str | dict):
        raise RefusedError(f"{param} has arguments that are no string", code="invalid_type", param=param)
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {
            "name": function["name"],
            "arguments": read_arguments(arguments) if isinstance(arguments, str) else arguments,
        },
    }


def _read_format(told: dict[str, Any] | None, param: str, *, nested: bool) -> dict[str, Any]:
    """What an answer has to be, as options of a row."""
    fields = Fields(told or {}, param)
    kind = fields.take("type", default="text")
    options: dict[str, Any] = {}
    if kind == "json_object":
        options = {"response_format": "json_object"}
    elif kind == "json_schema":
        options = {"schema": _read_schema(fields, nested=nested)}
    elif kind != "text":
        raise RefusedError(f"{param} is none of text, json_object and json_schema", code="invalid_value", param=param)
    fields.check_all_known()
    return options


def _read_schema(fields: Fields, *, nested: bool) -> dict[str, Any]:
    held = Fields(fields.take("json_schema", dict, default={}), fields.name("json_schema")) if nested else fields
    schema = held.take("schema", dict)
    if schema is None:
        raise RefusedError(f"{fields.where} has no schema", code="invalid_value", param=fields.where)
    held.take("name", str, required=not nested)  # a response repeats it
    held.take("description", str)
    held.take("strict", bool)
    held.check_all_known()
    return dict(schema)


def _read_tools(
    told: Sequence[Any], param: str, *, nested: bool
) -> tuple[dict[str, Mapping[str, Any]], list[dict[str, Any]]]:
    """Functions by name with the schema of their arguments, and as templates take them."""
    tools: dict[str, Mapping[str, Any]] = {}
    definitions = []
    for place, tool in enumerate(told):
        function = tool.get("function") if isinstance(tool, dict) and nested else tool
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RefusedError(
                f"{param}[{place}] is no function with a name; others are not supported here",
                code="invalid_value",
                param=f"{param}[{place}]",
            )
        fields = Fields(function, f"{param}[{place}]")
        name, told_of = fields.take("name"), fields.take("description", str, default="")
        parameters = fields.take("parameters", dict) or {"type": "object", "properties": {}}
        fields.take("strict", bool)
        if not nested:
            fields.take("type")
        else:
            check_known(tool, {"type", "function"}, f"{param}[{place}]")
        fields.check_all_known()
        tools[name] = parameters
        definitions.append(
            {"type": "function", "function": {"name": name, "description": told_of, "parameters": parameters}}
        )
    return tools, definitions


def _read_choice(told: Any, tools: Mapping[str, Any], param: str, *, nested: bool) -> tuple[tuple[str, ...], bool]:
    """Functions of which one has to be called, and whether the model hears of any."""
    if told in (None, "auto"):
        return (), True
    if told == "none":
        return (), False
    if not tools:
        raise RefusedError(f"{param} is for requests with tools", code="invalid_value", param=param)
    if told == "required":
        return tuple(tools), True
    held = told.get("function") if isinstance(told, dict) and nested else told
    name = held.get("name") if isinstance(held, dict) and told.get("type") == "function" else None
    if name not in list(tools):
        raise RefusedError(
            f"{param} is none of none, auto, required and a function among the tools", code="invalid_value", param=param
        )
    return (str(name),), True


def _read_prompts(told: Any, param: str, *, most: int = _MOST_INPUTS) -> list[Any]:
    """A text, token ids, or a list of either."""
    several = [told] if isinstance(told, str) or _is_ids(told) else told
    if not isinstance(several, list) or not 0 < len(several) <= most:
        raise RefusedError(
            f"{param} is no string, no list of token ids and no list of 1 to {most} of these",
            code="invalid_value",
            param=param,
        )
    for place, one in enumerate(several):
        name = param if several is not told else f"{param}[{place}]"
        if isinstance(one, str):
            check_text(one, name)
        if not one or not (isinstance(one, str) or _is_ids(one)):
            raise RefusedError(f"{name} is empty, or is no text and no token ids", code="invalid_value", param=name)
    return list(several)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 1 << 31 for token in value)
    )


def _read_completion(body: dict[str, Any]) -> Ask:
    fields = Fields(body)
    model = _read_shared(fields)
    options = _take_sampling(fields, longest=("max_tokens",)) | _take_penalties(fields)
    options.setdefault("max_new_tokens", _COMPLETION_TOKENS)
    tops = fields.take("logprobs", int)
    if tops is not None:
        if not 0 <= tops <= 5:
            raise RefusedError("logprobs is not from 0 to 5", code="invalid_value", param="logprobs")
        options |= {"logprobs": True, "top_logprobs": tops}
    if (best := fields.take("best_of", int)) is not None and best != options.get("n", 1):
        raise RefusedError("best_of is not supported here", code="unsupported_parameter", param="best_of")
    if fields.take("suffix", str):
        raise RefusedError("suffix is not supported here", code="unsupported_parameter", param="suffix")
    echo = fields.take("echo", bool, default=False)
    prompts = _read_prompts(fields.take("prompt", str, list, required=True), "prompt")
    if echo and (tops is not None or not all(isinstance(prompt, str) for prompt in prompts)):
        raise RefusedError("echo is for texts, without logprobs", code="unsupported_parameter", param="echo")
    fields.check_all_known()
    body_of = partial(make_completion_body, model=model, logprobs=tops, echo=prompts if echo else None)
    return Ask(model, "write", prompts, options, body_of, goes_on=True)


def _read_embeddings(body: dict[str, Any]) -> Ask:
    fields = Fields(body)
    model = _read_shared(fields)
    kind = fields.take("encoding_format", str, default="float")
    if kind not in ("float", "base64"):
        raise RefusedError("encoding_format is neither float nor base64", param="encoding_format", code="invalid_value")
    dimensions = fields.take("dimensions", int)
    if dimensions is not None and dimensions < 1:
        raise RefusedError("dimensions is not 1 or more", code="invalid_value", param="dimensions")
    prompts = _read_prompts(fields.take("input", str, list, required=True), "input")
    fields.check_all_known()
    body_of = partial(embedding_list, model=model, dimensions=dimensions, as_base64=kind == "base64")
    return Ask(model, "embed", prompts, {}, body_of)


def _read_response(body: dict[str, Any]) -> Ask:
    fields = Fields(body)
    model = _read_shared(fields)
    one_call = not fields.take("parallel_tool_calls", bool, default=True)
    fields.take("store", bool)
    for name, kind, allowed in (("background", bool, {False}), ("truncation", str, {"disabled"})):
        _refuse_unless(fields, name, kind, allowed)
    if fields.take("include", list):
        raise RefusedError("include is not supported here", code="unsupported_parameter", param="include")
    options = _take_sampling(fields, longest=("max_output_tokens",))
    if tops := fields.take_option("top_logprobs", "top_logprobs", int):
        options |= {"logprobs": True, "top_logprobs": tops}
    text = Fields(fields.take("text", dict, default={}), "text")
    options |= _read_format(text.take("format", dict), "text.format", nested=False)
    text.check_all_known()
    tools, definitions = _read_tools(fields.take("tools", list, default=[]), "tools", nested=False)
    must_call, gives = _read_choice(fields.take("tool_choice", str, dict), tools, "tool_choice", nested=False)
    instructions = fields.take("instructions", str)
    messages = _read_input(fields.take("input", str, list, required=True))
    if instructions is not None:
        messages.insert(0, {"role": "system", "content": check_text(instructions, "instructions")})
    fields.check_all_known()
    chat = make_chat(messages, tools=definitions if gives else ())
    body_of = partial(make_response_body, model=model, asked=fields.values)
    held = tools if gives and tools else None
    return Ask(model, "write", [chat], options, body_of, held, must_call, one_call=one_call)


_OF_ITEM = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
}


def _read_input(told: str | list[Any]) -> list[dict[str, Any]]:
    """The items of a response's input as messages."""
    if isinstance(told, str):
        return [{"role": "user", "content": check_text(told, "input")}]
    messages = list[dict[str, Any]]()
    for place, item in enumerate(told):
        param = f"input[{place}]"
        kind = str(item.get("type", "message")) if isinstance(item, dict) else ""
        if kind in _OF_ITEM:
            check_known(item, _OF_ITEM[kind] | {"type", "id", "status"}, param)
        if kind == "message" and item.get("role") in list(_ROLES):
            content = read_text(item.get("content"), f"{param}.content", kinds=("input_text", "output_text", "text"))
            messages.append({"role": _ROLES[item["role"]], "content": content})
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "function": item}
            messages.append({"role": "assistant", "content": "", "tool_calls": [_read_call(call, param)]})
        elif kind == "function_call_output":
            output = read_text(item.get("output"), f"{param}.output", kinds=("input_text", "text"))
            messages.append({"role": "tool", "content": output, "tool_call_id": str(item.get("call_id", ""))})
        else:
            raise RefusedError(f"{param} is of a kind that is not supported here", code="invalid_value", param=param)
    if not messages:
        raise RefusedError("input is empty", code="invalid_value", param="input")
    return messages


def write_line(line: Line, outcome: dict[str, Any] | RefusedError) -> str:
    """The line that answers a line."""
    custom_id = line.custom_id
    shown = custom_id if custom_id is None or isinstance(custom_id, str) else json.dumps(custom_id)
    made: dict[str, Any] = {"id": make_id("batch_req_"), "custom_id": shown, "response": None, "error": None}
    if isinstance(outcome, RefusedError) and not outcome.status:
        made["error"] = {"code": outcome.code, "message": outcome.message}
    else:
        status = outcome.status if isinstance(outcome, RefusedError) else 200
        body = error_body(outcome) if isinstance(outcome, RefusedError) else outcome
        made["response"] = {"status_code": status, "request_id": make_id("req_"), "body": body}
    return write_json(made)


def error_body(refused: RefusedError) -> dict[str, Any]:
    """An error as the service's body has it."""
    kind = refused.kind or _ERROR_KINDS.get(refused.status, "invalid_request_error")
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}}


def expired() -> RefusedError:
    """Of a request that came too late."""
    return RefusedError("the deadline came before the request was run", status=0, code="batch_expired")
