"""A JSON schema's parts, the keys that it lets in, and what of it a grammar can hold an answer to."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_IN_VALUE = (
    *("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_IN_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_IN_MAP = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_OF_OBJECTS = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_READ_BY_OTHERS = {"discriminator", "example", "externalDocs", "xml"}  # OpenAPI's, which bind no answer


def walk(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each schema in a schema with the keys that lead to it, the whole one first."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _IN_VALUE:
            yield from walk(value, (*path, key))
        elif key in _IN_LIST and isinstance(value, list):
            for number, part in enumerate(value):
                yield from walk(part, (*path, key, str(number)))
        elif key in _IN_MAP and isinstance(value, dict):
            for name, part in value.items():
                yield from walk(part, (*path, key, name))


def show_path(path: tuple[str, ...]) -> str:
    return ".".join(path) or "its top"


@functools.lru_cache(maxsize=16)
def close_schema(schema: str) -> str:
    """A schema whose objects have the keys that it names and no others, unless it says otherwise.

    A model that may invent keys does, and no column holds them. `additionalProperties: true` lets it; so does an object
    that names no keys, or that is put together of several. Likewise an array of `prefixItems` ends with them.
    """
    root = json.loads(schema)
    parts = list(walk(root))
    if any(_is_put_together(part) for _, part in parts):
        return schema
    for _, part in parts:
        if part.get("unevaluatedProperties") is False:  # which says the same where nothing is put together
            part["additionalProperties"] = part.pop("unevaluatedProperties")
        if "properties" in part and not any(key in part for key in _OF_OBJECTS):
            part["additionalProperties"] = False
        if "prefixItems" in part and "items" not in part:
            part["items"] = False
    return json.dumps(root)


def find_open_objects(schema: str) -> Iterator[tuple[str, ...]]:
    """Where an object has columns by name and may have other keys too."""
    for path, part in walk(json.loads(close_schema(schema))):
        if "properties" in part and part.get("additionalProperties") is not False:
            yield path


def _is_put_together(part: dict[str, Any]) -> bool:
    """Several schemas may name its keys, each of them only some."""
    named = [name for name in ("properties", "prefixItems", "$ref", "$dynamicRef") if name in part]
    several = [
        name
        for name in ("anyOf", "oneOf")
        if any(isinstance(choice, dict) and choice.keys() - {"required"} for choice in part.get(name, ()))
    ]
    return len(named) + len(several) + len(part.get("allOf", ())) > 1


@dataclass(frozen=True)
class Held:
    """What of a schema a grammar holds an answer to.

    Args:
        schema: The schema without what llguidance does not know.
        lost: Keywords that it leaves to be looked at afterwards, each with its place.
        formats: Those that nobody looks at, likewise.
        problem: Why there is no answer at all that matches; empty where there is one.
    """

    schema: str
    lost: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    problem: str = ""


@functools.lru_cache(maxsize=16)
def hold_schema(schema: str) -> Held:
    """Closed, without keywords, formats and patterns that llguidance refuses, and with `anyOf` for an odd `oneOf`."""
    root = json.loads(close_schema(schema))
    lost: list[str] = []
    formats: list[str] = []
    for path, part in walk(root):
        lost += (f"{told} at {show_path(path)}" for told in _loosen(part, root))
        if (told := part.get("format")) and _refusal({"type": "string", "format": told}):
            formats.append(f"format {part.pop('format')} at {show_path(path)}")
    return Held(json.dumps(root), tuple(lost), tuple(formats), " ".join(_refusal(root).split()))


def find_unread(schema: str) -> Iterator[str]:
    """Keywords that are none of JSON Schema's, as `maxlength` is not."""
    for path, part in walk(json.loads(schema)):
        for key in part.keys() - _vocabulary() - _READ_BY_OTHERS:
            if not key.startswith("x-"):
                yield f"{key} at {show_path(path)}"


def _loosen(part: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """Take out of a schema what a grammar cannot hold; yields what that was."""
    for key in [key for key in part if not _is_known(key)]:
        if part.pop(key) is not False or key != "uniqueItems":
            yield key
    if "patternProperties" in part:
        yield "patternProperties"  # some versions read it otherwise than JSON Schema does
    if (told := part.get("pattern")) is not None and _refusal({"type": "string", "pattern": told}):
        yield f"pattern {part.pop('pattern')!r}"
    defined: dict[str, Any] = {name: root[name] for name in ("$defs", "definitions") if name in root}
    if "oneOf" in part and "anyOf" not in part and "oneOf" in _refusal({**defined, "oneOf": part["oneOf"]}):
        part["anyOf"] = part.pop("oneOf")
        if "discriminator" not in part and not _are_constants(part["anyOf"]):
            yield "oneOf"


def _are_constants(choices: list[Any]) -> bool:
    """Each is one value of its own, so that no answer matches two."""
    values = {json.dumps(choice["const"]) for choice in choices if isinstance(choice, dict) and "const" in choice}
    return len(values) == len(choices)


@functools.cache
def _is_known(key: str) -> bool:
    return "Unimplemented keys" not in _refusal({key: {}})


@functools.cache
def _vocabulary() -> frozenset[str]:
    from jsonschema_specifications import REGISTRY

    schemas = (REGISTRY.contents(uri) for uri in REGISTRY if "2020-12" in uri)
    return frozenset(name for schema in schemas for name in schema.get("properties", {}))


def _refusal(schema: dict[str, Any]) -> str:
    """What llguidance has against a schema; empty where it takes it."""
    import llguidance

    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        return str(error)
    return str(llguidance.LLMatcher.validate_grammar(grammar))
