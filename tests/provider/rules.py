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
    problem = _problem_of(asked.get("schema"), all_required=True) if asked.get("strict") else ""
    if problem:
        text = f"Invalid schema for response_format '{asked['name']}': {problem}"
        raise Refusal(400, text, code="invalid_json_schema", param="response_format")


def check_anthropic(params: Mapping[str, Any]) -> None:
    """Refuse parameters that Anthropic does not know, and schemas with a free object in them."""
    unknown = params.keys() - _known_to_anthropic()
    if unknown:
        raise Refusal(400, f"{min(unknown)}: Extra inputs are not permitted")
    asked = (params.get("output_config") or {}).get("format")
    problem = _problem_of(asked.get("schema"), all_required=False) if asked else ""
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


def _problem_of(schema: Any, *, all_required: bool) -> str:
    """Why a schema is not one that answers can be held to; "" if it is."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "schema must be a JSON Schema of 'type: \"object\"'."
    for found in _objects_in(schema):
        if found.get("additionalProperties") is not False:
            return "'additionalProperties' is required to be supplied and to be false."
        if all_required and set(found.get("required", ())) != set(found.get("properties", {})):
            return "'required' is required to be supplied and to be an array including every key in properties."
    return ""


def _objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema's objects, at whatever depth; the names of properties are no keywords."""
    if isinstance(schema, list):
        for one in schema:
            yield from _objects_in(one)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "object" in (schema.get("type") or ()) or "properties" in schema:
        yield schema
    for name in ("properties", "$defs", "definitions"):
        yield from _objects_in(list(schema.get(name, {}).values()))
    for name in ("items", "anyOf", "oneOf", "allOf", "prefixItems"):
        yield from _objects_in(schema.get(name))
