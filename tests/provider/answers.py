"""What the provider answers: a function of the request's body, and of nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from typing import Any

import numpy as np

# the separator in "or\u2028der" is one that careless readers of lines cut at
_ODD = """naïve 水 or\u2028der it's "quoted" back\\slash café 🫖"""
_PLAIN = (
    "kettle spade linen copper harbour tea garden lamp quiet bright north river seven wool basket stone amber paper"
)
_WORDS = f"{_ODD} {_PLAIN}".split(" ")
_ANY_OBJECT = {"properties": {"answer": {"type": "string"}}}
_IN_ORDER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
DIMENSIONS = 16
CREATED = 1_700_000_000


def canonical(value: Any) -> bytes:
    return _IN_ORDER.encode(value).encode()


def digest(value: Any) -> bytes:
    return hashlib.blake2b(canonical(value), digest_size=16).digest()


def text_of(content: Any) -> str:
    """The words of a message's content: a text, or parts of which some have one."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or [] if isinstance(part, dict))


def words(text: str) -> int:
    """Tokens by this provider's count: what blanks part."""
    return len(text.split())


def written(seed: bytes, schema: Any = None) -> str:
    """The text that answers a body: JSON of a schema, or three to twelve words."""
    dice = random.Random(seed)
    if schema is not None:
        return json.dumps(instance(schema, dice), ensure_ascii=False)
    return " ".join(dice.choices(_WORDS, k=dice.randint(3, 12)))


def chat(body: dict[str, Any], fault: str = "") -> dict[str, Any]:
    """OpenAI's chat completion; `fault` is refusal, content_filter or length."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or math.inf
    seed, choices, spent = digest(body), [], 0
    for index in range(body.get("n") or 1):
        text, reason = _cut(_written_chat(body, seed + bytes([index])), limit, body.get("stop"), fault == "length")
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if fault == "refusal":
            message, reason = {**message, "content": None, "refusal": "I can't help with that."}, "stop"
        if fault == "content_filter":
            message, reason = {**message, "content": ""}, "content_filter"
        told = _logprobs(message["content"] or "", body.get("top_logprobs") or 0) if body.get("logprobs") else None
        choices.append({"index": index, "message": message, "logprobs": told, "finish_reason": reason})
        spent += words(message["content"] or message["refusal"] or "")
    asked = sum(words(text_of(m.get("content"))) for m in body["messages"])
    cached = sum(words(text_of(m.get("content"))) for m in body["messages"] if m.get("role") in ("system", "developer"))
    return {
        "id": f"chatcmpl-{seed.hex()}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": choices,
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": spent,
            "total_tokens": asked + spent,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's embeddings: vectors of unit norm, of `dimensions` or DIMENSIONS numbers."""
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(vector, body.get("encoding_format"))}
        for i, vector in enumerate(vector_of(body, one) for one in inputs_of(body))
    ]
    count = asked_tokens(body)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def inputs_of(body: dict[str, Any]) -> list[Any]:
    """The texts, or lists of token ids, that a body of embeddings asks for."""
    asked = body.get("input")
    if isinstance(asked, str) or (isinstance(asked, list) and asked and isinstance(asked[0], int)):
        return [asked]
    return asked if isinstance(asked, list) else []


def vector_of(body: dict[str, Any], one: Any) -> np.ndarray:
    seed = int.from_bytes(digest([body["model"], one]))
    vector = np.random.default_rng(seed).standard_normal(body.get("dimensions") or DIMENSIONS)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def message(params: dict[str, Any], fault: str = "") -> dict[str, Any]:
    """Anthropic's message; `fault` is refusal or length."""
    seed = digest(params)
    text, reason = _cut(
        _written_message(params, seed), params["max_tokens"], params.get("stop_sequences"), fault == "length"
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    stop = {"stop": "end_turn", "length": "max_tokens"}.get(reason, reason)
    spent = words(text)
    if fault == "length" and seed[0] % 2:
        stop = "model_context_window_exceeded"
    if fault == "refusal":
        content, stop, spent = [], "refusal", 1
    cached = words(text_of(params.get("system")))
    return {
        "id": f"msg_{seed.hex()}",
        "type": "message",
        "role": "assistant",
        "model": params["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": sum(words(text_of(m.get("content"))) for m in params["messages"]),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": spent,
        },
    }


def asked_text(body: dict[str, Any]) -> str:
    """All the words that a request puts in."""
    texts = [text_of(m.get("content")) for m in body.get("messages") or [] if isinstance(m, dict)]
    return " ".join([text_of(body.get("system")), *texts, *(one for one in inputs_of(body) if isinstance(one, str))])


def asked_tokens(body: dict[str, Any]) -> int:
    return words(asked_text(body)) + sum(len(one) for one in inputs_of(body) if isinstance(one, list))


def instance(schema: Any, dice: random.Random, root: Any = None) -> Any:
    """A value that a JSON schema allows; patterns alone are not kept."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return instance(_resolved(root, schema["$ref"]), dice, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return dice.choice(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return instance(dice.choice(schema[several]), dice, root)
    if "allOf" in schema:
        return instance(
            {k: v for part in [schema, *schema["allOf"]] for k, v in part.items() if k != "allOf"}, dice, root
        )
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    return _of_kind(dice.choice(kind) if isinstance(kind, list) else kind, schema, dice, root)


def _of_kind(kind: str, schema: dict[str, Any], dice: random.Random, root: Any) -> Any:
    if kind == "object":
        return {name: instance(one, dice, root) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        low = schema.get("minItems", 1)
        count = dice.randint(low, max(low, min(schema.get("maxItems", low + 2), low + 2)))
        return [instance(schema.get("items", {}), dice, root) for _ in range(count)]
    if kind == "integer":
        low = math.ceil(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1))
        return dice.randint(low, math.floor(schema.get("maximum", schema.get("exclusiveMaximum", low + 101) - 1)))
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1))
        return low + (high - low) * dice.choice((0.25, 0.5, 0.75))
    if kind == "boolean":
        return dice.random() < 0.5
    return None if kind == "null" else _string(schema, dice)


def _string(schema: dict[str, Any], dice: random.Random) -> str:
    known = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "time": "12:00:00Z", "email": "a@example.org"}
    if schema.get("format") in known:
        return known[schema["format"]]
    text = " ".join(dice.choices(_WORDS, k=2)).ljust(schema.get("minLength", 0), "x")
    return text[: schema.get("maxLength", len(text))]


def _resolved(root: Any, ref: str) -> Any:
    found = root
    for name in ref.removeprefix("#").strip("/").split("/") if ref != "#" else []:
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found


def _written_chat(body: dict[str, Any], seed: bytes) -> str:
    asked = body.get("response_format") or {}
    schemas = {"json_schema": asked.get("json_schema", {}).get("schema"), "json_object": _ANY_OBJECT}
    return written(seed, schemas.get(asked.get("type")))


def _written_message(params: dict[str, Any], seed: bytes) -> str:
    return written(seed, ((params.get("output_config") or {}).get("format") or {}).get("schema"))


def _logprobs(text: str, most: int) -> dict[str, Any]:
    """Probabilities of a text's words, each with the blanks before it: 1/2, and the others' 1/4, 1/8, …"""
    tokens = re.findall(r"\s*\S+", text)
    return {"refusal": None, "content": [_logprob(t, 1) | {"top_logprobs": _others(t, most)} for t in tokens]}


def _others(token: str, most: int) -> list[dict[str, Any]]:
    return [_logprob(token if rank == 1 else f" {_WORDS[rank]}", rank) for rank in range(1, most + 1)]


def _logprob(token: str, rank: int) -> dict[str, Any]:
    return {"token": token, "logprob": -rank * math.log(2), "bytes": list(token.encode())}


def _cut(text: str, limit: float, stops: Any, short: bool) -> tuple[str, str]:
    """A text as its limits leave it, and why it ends."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.partition(stop)[0]
    parts = text.split()
    if short:
        limit = min(limit, max(1, len(parts) // 2))
    return (text, "stop") if len(parts) <= limit and not short else (" ".join(parts[: int(limit)]), "length")


def _encode(vector: np.ndarray, form: str | None) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
