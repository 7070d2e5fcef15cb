"""Answers that match a JSON schema: the schema checked, its type as a column, an answer's text as a value."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_PLAIN = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_LONG = range(-(2**63), 2**63)


class InvalidAnswerError(ValueError):
    """An answer that is no JSON, or does not match."""


def find_schema_problems(schema: str) -> Iterator[str]:
    """What is wrong with a schema, as written in `score.schema`."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        value = json.loads(schema)
        Draft202012Validator.check_schema(value)
    except ValueError as error:
        yield f"schema is no JSON: {error}"
        return
    except SchemaError as error:
        yield f"schema is no JSON schema: {'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message}"
        return
    if not isinstance(value, dict) or not value:
        yield "schema is empty; give a JSON schema, as in {type: object, properties: {…}}"
    yield from (f"schema refers to {ref!r}; refer to its own $defs alone" for ref in _foreign_references(value))


def answer_type(schema: Any) -> pa.DataType:
    """The type of a column of values that match; what has no type of its own is JSON as text."""
    inner = _without_null(schema)
    kind = inner.get("type")
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "array" and isinstance(inner.get("items"), dict):
        return pa.list_(answer_type(inner["items"]))
    if kind == "object" and inner.get("properties"):
        return pa.struct([pa.field(name, answer_type(part)) for name, part in inner["properties"].items()])
    return pa.string()


def parse_answer(text: str, schema: str) -> Any:
    """An answer's value, of type `answer_type`.

    Raises:
        InvalidAnswerError: It is no JSON, or does not match.
    """
    from jsonschema.exceptions import ValidationError

    try:
        value = json.loads(text, parse_constant=_refuse)
        _validator(schema).validate(value)
        return _convert(value, json.loads(schema))
    except (ValueError, ValidationError, RecursionError, OverflowError) as error:
        raise InvalidAnswerError(type(error).__name__) from None


@functools.lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())  # an empty one fetches nothing


def _convert(value: Any, schema: Any) -> Any:
    if value is None:
        return None
    inner, made = _without_null(schema), answer_type(schema)
    if pa.types.is_struct(made):
        properties = inner["properties"]
        return {name: _convert(value.get(name), part) for name, part in properties.items()}
    if pa.types.is_list(made):
        return [_convert(part, inner["items"]) for part in value]
    if pa.types.is_integer(made):
        if int(value) not in _LONG:
            raise ValueError("more than 64 bits")
        return int(value)
    if pa.types.is_floating(made):
        return float(value)
    if pa.types.is_boolean(made) or inner.get("type") == "string" or _is_enum_of_strings(inner):
        return value
    return json.dumps(value, ensure_ascii=False)


def _without_null(schema: Any) -> dict[str, Any]:
    """A schema without its leave to be null, as `type: [string, "null"]` and `anyOf: [X, {type: "null"}]` give it."""
    if not isinstance(schema, dict):
        return {}
    if isinstance(kinds := schema.get("type"), list):
        others = [kind for kind in kinds if kind != "null"]
        return {**schema, "type": others[0]} if len(others) == 1 else {**schema, "type": None}
    others = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    return _without_null(others[0]) if len(others) == 1 and "type" not in schema else schema


def _is_enum_of_strings(schema: dict[str, Any]) -> bool:
    return bool(schema.get("enum")) and all(value is None or isinstance(value, str) for value in schema["enum"])


def _foreign_references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str) and not ref.startswith("#"):
            yield ref
        for part in value.values():
            yield from _foreign_references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _foreign_references(part)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
