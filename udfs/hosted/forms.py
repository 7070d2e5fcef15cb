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
_LENGTHS = {"minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties", "contains", "minContains"}
_LENGTHS |= {"maxContains", "contentEncoding", "contentMediaType"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "maxItems", "minItems"}
_SHAPES = {"type", "properties", "required", "additionalProperties", "enum", "const", "items", "anyOf", "$ref", "$defs"}
_SHAPES |= {"definitions", "title", "description", "pattern", "format"}


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
    lost = tuple(_take_out(root, _NOTES | _LENGTHS))
    if _is_strict(root) and root.get("type") == "object" and "anyOf" not in root:
        return Fitted(root, lost=lost)
    return Fitted(json.loads(close_schema(schema)), strict=False)


@functools.lru_cache(maxsize=64)
def fit_anthropic(schema: str) -> Fitted:
    """By Anthropic's structured outputs; a schema with open objects or others of its shapes is told in the prompt.

    Source: Anthropic, "Structured outputs", JSON Schema limitations.
    """
    root = json.loads(close_schema(schema))
    lost = tuple(_take_out(root, _NOTES | _LENGTHS | _NUMBERS))
    is_held = all(
        part.keys() <= _SHAPES | {"allOf"}
        and (("properties" not in part and part.get("type") != "object") or part.get("additionalProperties") is False)
        for _, part in walk(root)
    )
    return Fitted(root, lost=lost) if is_held else Fitted(None)


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


def _take_out(root: dict[str, Any], names: set[str]) -> Iterator[str]:
    for path, part in list(walk(root)):
        for name in [name for name in part if name in names]:
            del part[name]
            if name not in _NOTES:
                yield f"{name} at {show_path(path)}"
        if part.get("minItems") not in (None, 0, 1) and "minItems" in names:
            del part["minItems"]


def _is_strict(root: dict[str, Any]) -> bool:
    """Every object says all of its keys, and that each has to be there; no shape is beyond OpenAI's."""
    return all(
        part.keys() <= _SHAPES | _NUMBERS
        and (
            ("properties" not in part and part.get("type") != "object")
            or (
                part.get("additionalProperties") is False
                and set(part.get("required", ())) == set(part.get("properties", {}))
            )
        )
        for _, part in walk(root)
    )
