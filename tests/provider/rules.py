"""What requests of batches may hold: the parameters that the clients' types name, and schemas as they are narrowed.

Live calls are not held to it: servers that are only compatible take more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.provider.calls import Refusal

_FORMER = {"temperature", "top_p", "top_k"}  # Anthropic's older models take them still
_SHAPES = {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"}
_SHAPES |= {"definitions", "title", "description", "pattern", "format"}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems"}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def check_openai(body: Mapping[str, Any], endpoint: str) -> None:
    """Refuse parameters that OpenAI does not know, and strict schemas with a free object in them."""
    unknown = body.keys() - _known_to_openai(endpoint)
    if unknown:
        name = min(unknown)
        raise Refusal(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter", param=name)
    asked = (body.get("response_format") or {}).get("json_schema")
    if asked is None:
        return
    if not _NAME.fullmatch(asked.get("name", "")):
        raise Refusal(400, "Invalid 'response_format.json_schema.name'.", param="response_format")
    problem = _problem_for_openai(asked.get("schema")) if asked.get("strict") else ""
    if problem:
        text = f"Invalid schema for response_format '{asked['name']}': {problem}"
        raise Refusal(400, text, code="invalid_json_schema", param="response_format")


def check_anthropic(params: Mapping[str, Any]) -> None:
    """Refuse parameters that Anthropic does not know, and schemas with a free object in them."""
    unknown = params.keys() - _known_to_anthropic()
    if unknown:
        raise Refusal(400, f"{min(unknown)}: Extra inputs are not permitted")
    asked = (params.get("output_config") or {}).get("format")
    problem = _problem_for_anthropic(asked.get("schema")) if asked else ""
    if problem:
        raise Refusal(400, f"output_config.format.schema: {problem}")


def check_unsupported(body: Mapping[str, Any], without: frozenset[str]) -> None:
    """Refuse parameters that the models of this provider do not take."""
    found = body.keys() & without
    if found:
        name = min(found)
        raise Refusal(400, f"Unsupported parameter: '{name}'", code="unsupported_parameter", param=name)


@functools.cache
def _known_to_openai(endpoint: str) -> frozenset[str]:
    from openai.types import embedding_create_params
    from openai.types.chat import completion_create_params

    if endpoint == "/v1/embeddings":
        return frozenset(embedding_create_params.EmbeddingCreateParams.__annotations__)
    return frozenset(completion_create_params.CompletionCreateParamsNonStreaming.__annotations__)


@functools.cache
def _known_to_anthropic() -> frozenset[str]:
    from anthropic.types import message_create_params

    return frozenset(message_create_params.MessageCreateParamsNonStreaming.__annotations__) | _FORMER


def _problem_for_openai(schema: Any) -> str:
    """Why a strict schema is refused; "" if it is not."""
    if not isinstance(schema, dict) or schema.get("type") != "object" or "anyOf" in schema:
        return "schema must be a JSON Schema of 'type: \"object\"'."
    for part in _parts_of(schema):
        if unknown := part.keys() - _SHAPES - _BOUNDS:
            return f"'{min(unknown)}' is not permitted."
        if "$ref" in part and len(part) > 1:
            return "$ref cannot have keywords beside it."
        if _is_open(part):
            return "'additionalProperties' is required to be supplied and to be false."
        if set(part.get("required", ())) != set(part.get("properties", {})):
            return "'required' is required to be supplied and to be an array including every key in properties."
    return ""


def _problem_for_anthropic(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "Input should be an object"
    for part in _parts_of(schema):
        if unknown := part.keys() - _SHAPES - {"allOf", "default", "minItems"}:
            return f"property '{min(unknown)}' is not supported"
        if part.get("minItems", 0) > 1:
            return "values of minItems other than 0 and 1 are not supported"
        if _is_open(part):
            return "'additionalProperties' must be explicitly set to false"
    return ""


def _is_open(part: dict[str, Any]) -> bool:
    is_object = "properties" in part or "object" in (part.get("type") or ())
    return is_object and part.get("additionalProperties") is not False


def _parts_of(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas in a schema, at whatever depth; the names of properties are no keywords."""
    if isinstance(schema, list):
        for one in schema:
            yield from _parts_of(one)
    if not isinstance(schema, dict):
        return
    yield schema
    for name in ("properties", "$defs", "definitions"):
        yield from _parts_of(list(schema.get(name, {}).values()))
    for name in ("items", "anyOf", "oneOf", "allOf", "prefixItems"):
        yield from _parts_of(schema.get(name))
