"""The columns that hold what a JSON schema allows, and an answer's value as such a column takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from udfs.text.schema_parts import walk

_PLAIN = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_LONG = 2**63


@dataclass(frozen=True)
class Column:
    """What holds the values of one part of a schema.

    Args:
        kind: JSON's name of a plain type; `list`, `map` (of keys that the schema does not name), `tuple` or `struct`;
            `json` for what has no type of its own, and is kept as text.
        parts: Columns inside, by their names; a list's and a map's one has none.
    """

    kind: str
    parts: tuple[tuple[str, Column], ...] = ()

    def type(self) -> pa.DataType:
        match self.kind:
            case "list":
                return pa.list_(self.parts[0][1].type())
            case "map":
                return pa.map_(pa.string(), self.parts[0][1].type())
            case "struct" | "tuple":
                return pa.struct([pa.field(name, part.type()) for name, part in self.parts])
        return _PLAIN.get(self.kind, pa.string())

    def take(self, value: Any, place: str) -> Any:
        """A value that matches the schema, as the column takes it.

        Raises:
            ValueError: It does not fit; the message names the place in the schema, and holds nothing of the value.
        """
        if value is None and self.kind != "json":
            return None
        match self.kind:
            case "struct":
                return {name: part.take(value.get(name), f"{place}.{name}") for name, part in self.parts}
            case "tuple":
                padded = [*value, *[None] * len(self.parts)]
                taken = zip(self.parts, padded, strict=False)
                return {name: part.take(inner, f"{place}.{name}") for (name, part), inner in taken}
            case "list":
                return [self.parts[0][1].take(inner, f"{place}[]") for inner in value]
            case "map":
                part = self.parts[0][1]
                return [(_whole(key, place), part.take(inner, f"{place}{{}}")) for key, inner in value.items()]
            case "integer":
                return _fit_long(value, place)
            case "number":
                return _fit_double(value, place)
            case "json":
                return None if value is None else _whole(json.dumps(value, ensure_ascii=False), place)
        return _whole(value, place) if self.kind == "string" else value


_JSON = Column("json")


def read_column(schema: Any) -> Column:
    """The column for a schema's values: its references followed, what it leaves open as JSON.

    A part that refers to itself has no end, and is JSON where it comes round.

    Raises:
        referencing.exceptions.Unresolvable: A reference leads nowhere.
    """
    return _read(schema, _resolver(schema), frozenset())


def find_lost_references(schema: Any) -> Iterator[str]:
    """References that lead out of a schema, or nowhere in it; none is ever fetched."""
    from referencing.exceptions import Unresolvable

    resolver = _resolver(schema)
    for _, part in walk(schema):
        try:
            resolver.lookup(part.get("$ref", "#"))
        except Unresolvable:
            yield part["$ref"]


def _resolver(schema: Any) -> Any:
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    root = DRAFT202012.create_resource(schema)
    name = root.id() or ""
    return Registry().with_resource(name, root).resolver(name)


def _read(schema: Any, resolver: Any, within: frozenset[int]) -> Column:
    """Args: within: What lies around, by `id`, so that a part of itself is found."""
    facts = list(_gather(schema, resolver, within))
    if any(id(fact) in within for fact, _ in facts):
        return _JSON
    within |= {id(fact) for fact, _ in facts}
    kind = _kind_of([fact for fact, _ in facts])
    if kind in _PLAIN:
        return Column(kind)
    if kind == "object" and (found := _read_object(facts, within)):
        return found
    if kind == "array" and (found := _read_array(facts, within)):
        return found
    choices = [
        _read(choice, where, within) for fact, where in facts for choice in _choices_of(fact, where, within, kind)
    ]
    return _unite(choices) if choices else _JSON


def _gather(schema: Any, resolver: Any, within: frozenset[int]) -> Iterator[tuple[dict[str, Any], Any]]:
    """A schema and what holds beside it: what it refers to, `allOf`, and the one choice that is left beside null."""
    if not isinstance(schema, dict):
        return
    yield schema, resolver
    if id(schema) in within:
        return
    within |= {id(schema)}
    if "$ref" in schema:
        found = resolver.lookup(schema["$ref"])
        yield from _gather(found.contents, found.resolver, within)
    for part in schema.get("allOf", ()):
        yield from _gather(part, resolver, within)
    for name in ("anyOf", "oneOf"):
        others = [part for part in schema.get(name, ()) if not _is_null(part, resolver, within)]
        if len(others) == 1:
            yield from _gather(others[0], resolver, within)


def _choices_of(fact: dict[str, Any], resolver: Any, within: frozenset[int], kind: str | None) -> list[Any]:
    """What a schema has several choices of: alternatives, or types."""
    for name in ("anyOf", "oneOf"):
        others = [part for part in fact.get(name, ()) if not _is_null(part, resolver, within - {id(fact)})]
        if len(others) > 1:
            return others
    told = fact.get("type")
    if kind is None and isinstance(told, list) and "enum" not in fact and "const" not in fact:
        return [{**fact, "type": name} for name in told if name != "null"]
    return []


def _is_null(schema: Any, resolver: Any, within: frozenset[int]) -> bool:
    """Nothing but null matches."""
    facts = [fact for fact, _ in _gather(schema, resolver, within)]
    return any(_kinds_told(fact) == {"null"} for fact in facts)


def _kind_of(facts: list[dict[str, Any]]) -> str | None:
    """The one type besides null that all facts leave; None where there are several, or any."""
    left: set[str] | None = None
    for fact in facts:
        told = _kinds_told(fact)
        if told is None:
            continue
        told = told | ({"integer"} if "number" in told else set())
        left = told if left is None else left & told
    kinds = (left or set()) - {"null"}
    if kinds == {"integer", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else None


def _kinds_told(fact: dict[str, Any]) -> set[str] | None:
    """JSON's types that a schema names, by itself or by its constants; None where it names none."""
    told = fact.get("type")
    values = [fact["const"]] if "const" in fact else fact.get("enum")
    named = None if told is None else {told} if isinstance(told, str) else set(told)
    if values is None:
        return named
    kinds = {_kind_of_value(value) for value in values}
    if named is None:
        return kinds
    return {"number"} if "number" in named and kinds <= {"integer", "number"} else kinds & (named | {"null"})


def _kind_of_value(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def _read_object(facts: list[tuple[dict[str, Any], Any]], within: frozenset[int]) -> Column | None:
    named: dict[str, Column] = {}
    for fact, where in facts:
        for name, part in fact.get("properties", {}).items():
            read = _read(part, where, within)
            if name not in named or named[name] == _JSON:  # of two, the one that says more
                named[name] = read
    if named:
        return Column("struct", tuple(named.items()))
    for fact, where in facts:
        if fact.get("additionalProperties") and isinstance(fact["additionalProperties"], dict):
            return Column("map", (("", _read(fact["additionalProperties"], where, within)),))
    return None


def _read_array(facts: list[tuple[dict[str, Any], Any]], within: frozenset[int]) -> Column | None:
    for fact, where in facts:
        first, rest = fact.get("prefixItems"), fact.get("items")
        places = [_read(part, where, within) for part in first or ()]
        is_open = first is None or not (rest is False or fact.get("maxItems", math.inf) <= len(first))
        others = [_read(rest, where, within)] if is_open and (first is None or rest is not None) else []
        if first is None and not isinstance(rest, dict):
            continue
        if len(set(columns := [*places, *others])) == 1:
            return Column("list", (("", columns[0]),))
        if not others:
            return Column("tuple", tuple((f"_{number}", part) for number, part in enumerate(places, 1)))
    return None


def _unite(columns: Iterable[Column]) -> Column:
    """One column for what may be of any of some."""
    found = set(columns)
    if len(found) == 1:
        return found.pop()
    return Column("number") if found <= {Column("integer"), Column("number")} else _JSON


def _fit_long(value: Any, place: str) -> int:
    if not -_LONG <= value < _LONG:
        raise ValueError(f"{place} is an integer of more than 64 bits, which no column holds")
    return int(value)


def _fit_double(value: Any, place: str) -> float:
    try:
        if math.isfinite(number := float(value)):
            return number
    except OverflowError:
        pass
    raise ValueError(f"{place} is a number of more than 64 bits, which no column holds")


def _whole(text: str, place: str) -> str:
    """A text that has only whole characters, as JSON's escapes need not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} holds half a character (a lone surrogate), which no column holds") from None
    return text
