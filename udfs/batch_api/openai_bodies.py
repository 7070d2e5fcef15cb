"""Bodies of OpenAI's responses, made of what models have answered."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from udfs.batch_api.requests import Answer, RefusedError, make_id
from udfs.batch_api.tools import Call

FINISH = {"stop": "stop", "length": "length", "empty": "stop"}


def make_chat_body(answers: Sequence[Answer], *, model: str, logprobs: bool) -> dict[str, Any]:
    """A `chat.completion`."""
    (answer,) = answers
    choices = []
    for index, one in enumerate(answer.candidates):
        message: dict[str, Any] = {"role": "assistant", "content": one["text"], "refusal": None, "annotations": []}
        finish, calls = FINISH[one["finish_reason"]], one.get("calls")
        if one.get("reasoning"):
            message["reasoning_content"] = one["reasoning"]
        if calls:
            message |= {"content": one["text"] or None, "tool_calls": [_show_call(call) for call in calls]}
            finish = "tool_calls" if finish == "stop" else finish
        told = {"content": [_show_token(token) for token in one["logprobs"] or ()], "refusal": None}
        choices.append(
            {"index": index, "message": message, "logprobs": told if logprobs else None, "finish_reason": finish}
        )
    return {
        "id": make_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": _usage(answers),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _show_call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": make_id("call_"), "type": "function", "function": function}


def _show_token(told: Mapping[str, Any]) -> dict[str, Any]:
    one = _show_one(told)
    one["top_logprobs"] = [_show_one(top) for top in told["top"]]
    return one


def _show_one(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": told["token"], "logprob": round(told["logprob"], 6), "bytes": list(told["bytes"])}


def _usage(answers: Sequence[Answer]) -> dict[str, Any]:
    read, wrote, cached = sum_usage(answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": wrote,
        "total_tokens": read + wrote,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def sum_usage(answers: Sequence[Answer]) -> tuple[int, int, int]:
    """Tokens that were read, that were written, and those of the first that had been computed before."""
    wrote = sum(one["output_tokens"] for answer in answers for one in answer.candidates)
    return sum(a.input_tokens for a in answers), wrote, sum(a.cached_tokens for a in answers)


def make_completion_body(
    answers: Sequence[Answer], *, model: str, logprobs: int | None, echo: Sequence[str] | None
) -> dict[str, Any]:
    """A `text_completion`."""
    choices = list[dict[str, Any]]()
    for place, answer in enumerate(answers):
        before = echo[place] if echo else ""
        for one in answer.candidates:
            told = None if logprobs is None else _show_completion_tokens(one["logprobs"] or ())
            finish = FINISH[one["finish_reason"]]
            choices.append(
                {"index": len(choices), "text": before + one["text"], "logprobs": told, "finish_reason": finish}
            )
    return {
        "id": make_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": _usage(answers),
        "system_fingerprint": None,
    }


def _show_completion_tokens(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [token["token"] for token in told]
    return {
        "tokens": tokens,
        "token_logprobs": [round(token["logprob"], 6) for token in told],
        "top_logprobs": [{top["token"]: round(top["logprob"], 6) for top in token["top"]} for token in told],
        "text_offset": [int(end) for end in np.cumsum([0, *map(len, tokens)])[:-1]],
    }


def embedding_list(answers: Sequence[Answer], *, model: str, dimensions: int | None, as_base64: bool) -> dict[str, Any]:
    """A `list` of `embedding`.

    Raises:
        RefusedError: Vectors have fewer numbers than were asked for.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": _show_vector(_cut(answer.vector, dimensions), as_base64)}
        for index, answer in enumerate(answers)
    ]
    read = sum(answer.input_tokens for answer in answers)
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": read, "total_tokens": read}}


def _cut(vector: np.ndarray | None, dimensions: int | None) -> np.ndarray:
    """The first numbers of a vector, of length 1 if the whole has it."""
    whole = np.zeros(0, dtype=np.float32) if vector is None else vector
    if dimensions is None or dimensions == len(whole):
        return whole
    if dimensions > len(whole):
        raise RefusedError(
            f"the model's vectors have {len(whole)} numbers, fewer than dimensions",
            code="invalid_value",
            param="dimensions",
        )
    cut = whole[:dimensions]
    is_unit = abs(float(np.linalg.norm(whole)) - 1.0) < 1e-2
    return cut / max(float(np.linalg.norm(cut)), 1e-12) if is_unit else cut


def _show_vector(vector: np.ndarray, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(f"{value:.9g}") for value in vector.tolist()]  # as many digits as a float32 has


def make_response_body(answers: Sequence[Answer], *, model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A `response`."""
    (answer,) = answers
    (one,) = answer.candidates
    is_whole = one["finish_reason"] != "length"
    status = "completed" if is_whole else "incomplete"
    output: list[dict[str, Any]] = []
    calls = one.get("calls") or ()
    if one["text"] or not calls:
        part = {"type": "output_text", "text": one["text"], "annotations": []}
        part["logprobs"] = [_show_token(token) for token in one["logprobs"] or ()]
        output.append(
            {"id": make_id("msg_"), "type": "message", "status": status, "role": "assistant", "content": [part]}
        )
    output += [
        {
            "id": make_id("fc_"),
            "type": "function_call",
            "status": status,
            "call_id": make_id("call_"),
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in calls
    ]
    read, wrote, cached = sum_usage(answers)
    return {
        "id": make_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "model": model,
        "output": output,
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "service_tier": "default",
        "store": asked.get("store", False),
        "temperature": asked.get("temperature", 1.0),
        "text": {"format": (asked.get("text") or {}).get("format") or {"type": "text"}},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": [{"strict": None, "parameters": None, **tool} for tool in asked.get("tools", ())],
        "top_logprobs": asked.get("top_logprobs", 0),
        "top_p": asked.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": wrote,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + wrote,
        },
        "user": asked.get("user"),
        "metadata": asked.get("metadata") or {},
    }
