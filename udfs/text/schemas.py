"""Answers that match a JSON schema: the schema checked, its type as a column, an answer's text as a value."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa

from udfs.text.schema_columns import Column, find_lost_references, read_column
from udfs.text.schema_parts import close_schema, find_open_objects, find_unread, hold_schema, show_path, walk


class InvalidAnswerError(ValueError):
    """An answer that is no JSON, does not match, or that no column holds; the message holds nothing of the answer."""


def find_schema_problems(schema: str) -> Iterator[str]:
    """What is wrong with a schema, as written in `score.schema`, so that no answer could match."""
    yield from _find_problems(schema)


def tell_schema(schema: str) -> list[str]:
    """What of a schema is not held while a model writes, or is in no column."""
    lost = ", ".join(hold_schema(schema).lost)
    told = (
        f"score.schema has {lost}, to which the grammar does not hold the model: an answer that breaks it fails as "
        "invalid_output; leave it out where that is too often"
    )
    return [*([told] if lost else []), *tell_unbound(schema)]


def tell_unbound(schema: str) -> list[str]:
    """What of a schema binds no answer, or is in no column."""
    told, held = [], hold_schema(schema)
    if places := [show_path(path) for path in find_open_objects(schema)]:
        told.append(
            f"score.schema lets objects at {', '.join(places)} have keys that it does not name; what the model invents "
            "is in `text`, and in no column"
        )
    if unread := [*held.formats, *find_unread(schema)]:
        told.append(f"score.schema has {', '.join(unread)}, which nobody knows: it binds no answer")
    return told


def answer_type(schema: Any) -> pa.DataType:
    """The type of a column of values that match; what has no type of its own is JSON as text."""
    return _column(json.dumps(schema)).type()


def parse_answer(text: str, schema: str) -> Any:
    """An answer's value, of type `answer_type`.

    Raises:
        InvalidAnswerError: It is no JSON, does not match, or no column holds it.
    """
    from jsonschema.exceptions import ValidationError

    try:
        value = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise InvalidAnswerError(f"the answer is no JSON: {error.msg}") from None
    except InvalidAnswerError:
        raise
    except ValueError:  # Python's own limit
        raise InvalidAnswerError("the answer has an integer of thousands of digits, which no column holds") from None
    except RecursionError:
        raise InvalidAnswerError("the answer is nested too deep") from None
    try:
        _validator(schema).validate(json.loads(text, parse_float=Decimal))
        return _column(schema).take(value, "answer")
    except ValidationError as error:
        place = show_path(tuple(map(str, error.absolute_schema_path)))
        raise InvalidAnswerError(f"the answer does not match the schema: {place}") from None
    except ValueError as error:
        raise InvalidAnswerError(str(error)) from None
    except (RecursionError, ArithmeticError) as error:
        raise InvalidAnswerError(f"the answer cannot be held to the schema: {type(error).__name__}") from None


@functools.lru_cache(maxsize=16)
def _find_problems(schema: str) -> tuple[str, ...]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        value = json.loads(schema)
        Draft202012Validator.check_schema(value)
    except ValueError as error:
        return (f"schema is no JSON: {error}",)
    except SchemaError as error:
        return (f"schema is no JSON schema: {'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message}",)
    except RecursionError:
        return ("schema is nested too deep",)
    if not isinstance(value, dict) or not value:
        return ("schema is empty; give a JSON schema, as in {type: object, properties: {…}}",)
    problems = [f"schema refers to {ref!r}; refer to its own $defs alone" for ref in find_lost_references(value)]
    problems += _find_like_names(value)
    if not problems and (problem := hold_schema(schema).problem):
        problems.append(f"schema has no answer that matches, or none that a grammar can write: {problem}")
    return tuple(problems)


def _find_like_names(schema: Any) -> Iterator[str]:
    for path, part in walk(schema):
        names = [name.lower() for name in part.get("properties", {})]
        if len(set(names)) < len(names):
            yield f"schema has properties at {show_path(path)} that differ in case alone, as no columns may; rename one"


@functools.lru_cache(maxsize=16)
def _column(schema: str) -> Column:
    return read_column(json.loads(close_schema(schema)))


@functools.lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    """Of numbers as they are written, since 0.07 is a multiple of 0.01, but for floats."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: _is_integer(value))
    kind = extend(Draft202012Validator, type_checker=checker)
    return kind(
        json.loads(close_schema(schema), parse_float=Decimal), registry=Registry()
    )  # an empty one fetches nothing


def _is_integer(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(constant: str) -> Any:
    raise InvalidAnswerError(f"the answer is no JSON: it has {constant}")
