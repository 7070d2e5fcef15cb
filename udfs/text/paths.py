"""Paths into a row: a column's name, and then fields, keys and elements."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from udfs.text.values import is_blank, is_nested, is_variant

EACH = None  # the step that stands for every element of an array, or for a key that only a row tells
Path = tuple[str | None, ...]


def find_missing(paths: Iterable[Path], columns: Sequence[pa.Field]) -> str | None:
    """What a template reads and the columns do not have, in a line; None where all is there."""
    top = {field.name: field.type for field in columns}
    for path in sorted(paths, key=repr):
        name = str(path[0])
        if name not in top:
            return f"{name}; the columns are {', '.join(top) or 'none'}"
        if told := _find_missing(name, path[1:], top[name]):
            return told
    return None


def _find_missing(name: str, path: Path, kind: pa.DataType) -> str | None:
    """As `find_missing`, of a column or a field."""
    if not path or pa.types.is_null(kind):
        return None
    step, rest = path[0], path[1:]
    if pa.types.is_map(kind):
        return _find_missing(f"{name}[{'…' if step is EACH else repr(step)}]", rest, kind.item_type)
    if is_nested(kind) and not pa.types.is_struct(kind):
        if step is not EACH:
            return f"{name}.{step}, but {name} is an array; take {name}[0].{step}, or loop over it"
        return _find_missing(f"{name}[0]", rest, kind.value_type)
    if pa.types.is_struct(kind) and not is_variant(kind):
        if step is EACH:
            return None
        fields = {field.name: field.type for field in kind}
        if step not in fields:
            return f"{name}.{step}, but {name} has the fields {', '.join(fields) or 'none'}"
        return _find_missing(f"{name}.{step}", rest, fields[step])
    if step is EACH or (pa.types.is_temporal(kind) and hasattr(datetime.datetime, step)):
        return None
    advice = "; take its fields out by a `query`" if is_variant(kind) else ""
    return f"{name}.{step}, but {name} is {'a VARIANT' if is_variant(kind) else kind} and has no fields{advice}"


def values_at(value: Any, path: Path) -> list[Any]:
    """What of a value, or of a row of columns, a path leads to; empty where it leads to nothing."""
    if not path:
        return [value]
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        items = list(value.values()) if step is EACH else [value[step]] if step in value else []
    elif isinstance(value, list):
        items = value
    else:  # an attribute, or a part, of what is no container
        return [value]
    return [found for item in items for found in values_at(item, rest)]


def is_empty(row: dict[str, Any], paths: Iterable[Path]) -> bool:
    """Whether all that is read of a row is null, empty or blank."""
    return all(is_blank(value) for path in paths for value in values_at(row, path))
