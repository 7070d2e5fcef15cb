"""What an answer has to be, as a provider is told it: a JSON schema of its own kind, or words in the prompt.

Providers know parts of JSON Schema. What one does not know is left out of what it is told, and an answer is held to the
whole schema when it is there, as a local model's is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from udfs.tasks.writing_options import ANY_OBJECT, Form
from udfs.text.schema_parts import close_schema, hold_schema, show_path, walk

CHOICE = "answer"  # the key whose value is the choice
_MOST_CHOICES, _MANY_CHOICES, _MOST_CHARACTERS = 1000, 250, 15_000  # of OpenAI's enumerations
_NOTES = {"default", "examples", "example", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"}
_SHAPES = {"type", "properties", "required", "additionalProperties", "enum", "const", "items", "anyOf", "$ref", "$defs"}
_SHAPES |= {"definitions", "title", "description", "pattern", "format"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
# Keywords that bound a value and not its shape: what a provider does not know of them is told in words.
_OF_OPENAI = _SHAPES | _NUMBERS | {"minItems", "maxItems"}
_OF_ANTHROPIC = _SHAPES | {"allOf"}
_BOUNDS = {"minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties", "contentEncoding"}
_BOUNDS |= {"contentMediaType", "minItems", "maxItems", *_NUMBERS}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}


@dataclass(frozen=True)
class Fitted:
    """A schema as a provider is told it.

    Args:
        schema: What it is told; None where it takes none, and the prompt says it.
        strict: It holds the model to it.
        lost: Keywords that are looked at afterwards alone, each with its place.
    """

    schema: dict[str, Any] | None
    strict: bool = True
    lost: tuple[str, ...] = ()


@functools.lru_cache(maxsize=64)
def fit_openai(schema: str) -> Fitted:
    """By OpenAI's strict structured outputs; a schema that these do not take goes as it is, and binds loosely.

    Source: OpenAI, "Structured model outputs", supported schemas.
    """
    root = json.loads(close_schema(schema))
    lost = tuple(_loosen(root, _OF_OPENAI))
    parts = [part for _, part in walk(root)]
    for part in parts:
        if "$ref" in part:  # it stands alone
            part.pop("title", None)
            part.pop("description", None)
    is_known = all(part.keys() <= _OF_OPENAI and not ("$ref" in part and len(part) > 1) for part in parts)
    is_whole = all(set(part.get("required", ())) == set(part.get("properties", {})) for part in parts)
    is_object = root.get("type") == "object" and "anyOf" not in root
    if is_known and is_whole and is_object and all(map(_is_closed, parts)):
        return Fitted(root, lost=lost)
    return Fitted(json.loads(close_schema(schema)), strict=False)


@functools.lru_cache(maxsize=64)
def fit_anthropic(schema: str) -> Fitted:
    """By Anthropic's structured outputs; a schema of other shapes, or with open objects, is told in the prompt.

    Source: Anthropic, "Structured outputs", JSON Schema limitations.
    """
    root = json.loads(close_schema(schema))
    lost = tuple(_loosen(root, _OF_ANTHROPIC))
    parts = [part for _, part in walk(root)]
    is_known = all(part.keys() <= _OF_ANTHROPIC for part in parts)
    return Fitted(root, lost=lost) if is_known and all(map(_is_closed, parts)) else Fitted(None)


@functools.lru_cache(maxsize=64)
def fit_compatible(schema: str) -> Fitted:
    """By a grammar such as those of vLLM's servers."""
    held = hold_schema(schema)
    return Fitted(json.loads(held.schema), lost=held.lost)


def schema_of_choices(choices: Sequence[str]) -> str | None:
    """A schema whose one value is one of some choices; None where there are more than providers take."""
    many = len(choices) > _MANY_CHOICES and sum(map(len, choices)) > _MOST_CHARACTERS
    if len(choices) > _MOST_CHOICES or many:
        return None
    return json.dumps(
        {
            "type": "object",
            "properties": {CHOICE: {"type": "string", "enum": list(choices)}},
            "required": [CHOICE],
            "additionalProperties": False,
        },
        ensure_ascii=False,
    )


def instruct(form: Form) -> str:
    """What the prompt says of the form where nothing else does."""
    if form.choices:
        return "\n\nAnswer with exactly one of these, and nothing else:\n" + "\n".join(f"- {c}" for c in form.choices)
    if form.json_schema == ANY_OBJECT:
        return "\n\nAnswer with a JSON object alone."
    return f"\n\nAnswer with JSON alone, by this JSON schema:\n{form.json_schema}"


def read_form(text: str, form: Form) -> str:
    """An answer's text without what a provider's own form, or a fence of Markdown, puts around it."""
    if not form:
        return text
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") + 1 : -3].strip()
    if not form.choices or bare in form.choices:
        return bare
    try:
        told = json.loads(bare)
    except (ValueError, RecursionError):
        return bare
    chosen = told.get(CHOICE) if isinstance(told, dict) else told
    return chosen if isinstance(chosen, str) else bare


def _loosen(root: dict[str, Any], known: set[str]) -> Iterator[str]:
    """Move bounds that a provider does not know into descriptions, which a model reads; yields what they were."""
    for path, part in list(walk(root)):
        for name in _NOTES & part.keys():
            del part[name]
        bounds = sorted(name for name in part if name in _BOUNDS and name not in known)
        if part.get("format") not in (None, *_FORMATS):
            bounds.append("format")
        if not bounds:
            continue
        told = ", ".join(f"{name}: {json.dumps(part.pop(name))}" for name in bounds)
        part["description"] = f"{part['description']} ({told})" if part.get("description") else f"({told})"
        yield from (f"{name} at {show_path(path)}" for name in bounds)


def _is_closed(part: dict[str, Any]) -> bool:
    """It is no object, or says which keys it has."""
    is_object = "properties" in part or part.get("type") == "object"
    return not is_object or part.get("additionalProperties") is False
