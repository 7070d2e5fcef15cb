"""Functions that a chat's answer may call: how a model's template has it write a call, and what it has written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from udfs.batch_api.requests import is_deep, read_json

_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` are JSON, as they were written."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Way:
    """How calls are written by the models of a family.

    Args:
        mark: By which a template shows that it is of the family.
        before: What begins a call that is asked for.
        arguments: What the arguments are called.
        several: Calls are a list.
    """

    mark: str
    before: str
    arguments: str = "arguments"
    several: bool = False


WAYS = (
    Way("<tool_call>", "<tool_call>\n"),
    Way("[TOOL_CALLS]", "[TOOL_CALLS]", several=True),
    Way("<|python_tag|>", "", "parameters"),
)


def find_way(template: str) -> Way | None:
    """How a chat template has calls written; None where it does not tell of tools, or of no way that is known here."""
    if "tools" not in template:
        return None
    return next((way for way in WAYS if way.mark in template), None)


def make_call_schema(way: Way, tools: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A JSON schema of a call of one of some functions, as a model of a family writes it."""
    choices = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, way.arguments: {"type": "object", **tools[name]}},
            "required": ["name", way.arguments],
            "additionalProperties": False,
        }
        for name in names
    ]
    one: dict[str, Any] = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"type": "array", "items": one, "minItems": 1, "maxItems": 1} if way.several else one


def part_calls(text: str, way: Way | None, names: Iterable[str]) -> tuple[str, list[Call]]:
    """A model's answer as what it says and what it calls; what is no call of a function that there is stays text."""
    if way is None:
        return text, []
    known = set(names)
    if found := _HERMES.findall(text):
        calls = [call for part in found for call in _read(part, known)]
        return (_HERMES.sub("", text).strip(), calls) if len(calls) == len(found) else (text, [])
    calls = _read(text.strip().removeprefix(way.mark).strip(), known)
    return ("", calls) if calls else (text, [])


def _read(text: str, known: set[str]) -> list[Call]:
    try:
        value = read_json(text)
    except (ValueError, RecursionError):
        return []
    if is_deep(value):
        return []
    told = value if isinstance(value, list) else [value]
    calls = list[Call]()
    for one in told:
        arguments = one.get("arguments", one.get("parameters")) if isinstance(one, dict) else None
        if not isinstance(arguments, dict) or one.get("name") not in known:
            return []
        calls.append(Call(one["name"], json.dumps(arguments, ensure_ascii=False)))
    return calls
