"""Jinja2 for rows: a sandbox in which columns win over all other names, and null is nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer

from udfs.text.values import NOTHING, Nothing, Struct, to_json, to_text

METHOD = "()"  # before the name of what is called
NAMES_OF_JINJA = "_global_"  # before the name of one of Jinja's functions
_COLUMN, _TEXT = "_column_", "_text"
_OF_STRINGS = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "string", "striptags"}
    | {"title", "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap"}
)
_COUNT = frozenset({"count", "length", "wordcount"})
_WITH_DEFAULT = frozenset({"default", "d", "int", "float"})


class NoSuchFieldError(Exception):
    """A template reads a field that a struct does not have."""


def symbol_of(column: str) -> str:
    """The name by which a compiled template reads a column whose own name Jinja would not take for one."""
    return _COLUMN + column.encode("utf-8", "surrogatepass").hex()


def column_of(symbol: str) -> str:
    """The column that a name in a parsed template means."""
    told = symbol.removeprefix(_COLUMN)
    return symbol if told == symbol else bytes.fromhex(told).decode("utf-8", "surrogatepass")


def symbols_in(tree: nodes.Template) -> dict[str, str]:
    """Such names in a parsed template, and their columns."""
    names = {name.name for name in tree.find_all(nodes.Name)}
    return {name: column_of(name) for name in names if name.startswith(_COLUMN)}


class RowEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox in which templates are rendered.

    - `col('first name')` is a column, whatever its name.
    - `range`, `dict` and Jinja's other globals are these where they are called, and columns elsewhere.
    - A field or key wins over a method of the same name, unless it is called; a method that is not called is none.
    - Values are written by `to_text`: by themselves, by `~`, by `join` and by the filters of strings.
    - Null passes through filters, but for those that are about it (`default`, `length`, `tojson`).
    """

    def __init__(self) -> None:
        super().__init__(autoescape=False, finalize=_finalize)
        self.globals = {NAMES_OF_JINJA + name: value for name, value in self.globals.items()}
        self.filters = {name: _let_null_pass(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "join": functools.partial(_join, self),
            "tojson": _write_json,
            "format": _format,
            "attr": functools.partial(_attr, self),
            _TEXT: _finalize,
        }
        self.tests |= {"none": _is_null, "defined": lambda value: not _is_null(value), "undefined": _is_null}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        read: nodes.Template = _Reading(_own_names(tree)).visit(tree)
        return read.set_environment(self)  # type: ignore[return-value]

    def getattr(self, obj: Any, attribute: str) -> Any:
        name = attribute.removeprefix(METHOD)
        is_called = name != attribute
        if isinstance(obj, dict) and not (is_called and hasattr(dict, name)):
            return _field_of(obj, name)
        if isinstance(obj, Nothing) and not name.startswith("_") and not (is_called and hasattr(str, name)):
            return NOTHING
        return super().getattr(obj, name)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, dict):
            return _field_of(obj, argument)
        if isinstance(obj, Nothing):
            return NOTHING
        if isinstance(obj, list | tuple) and isinstance(argument, int) and not -len(obj) <= argument < len(obj):
            return NOTHING
        return super().getitem(obj, argument)


class _Reading(NodeTransformer):
    """A template's tree as rows are to be read by it."""

    def __init__(self, own: frozenset[str]) -> None:
        self._own = own

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        callee = node.node
        if isinstance(callee, nodes.Name) and callee.name not in self._own:
            match callee.name, node.args:
                case "col", [nodes.Const(value=str(column))]:
                    return nodes.Name(symbol_of(column), "load", lineno=node.lineno)
                case (("range" | "dict" | "lipsum" | "cycler" | "joiner" | "namespace"), _):
                    callee.name = NAMES_OF_JINJA + callee.name
        if isinstance(callee, nodes.Getattr):
            callee.attr = METHOD + callee.attr
        return self.generic_visit(node)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.name == "self" and "self" not in self._own:
            node.name = symbol_of("self")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [nodes.Filter(part, _TEXT, [], [], None, None, lineno=node.lineno) for part in node.nodes]
        return node


def _own_names(tree: nodes.Template) -> frozenset[str]:
    """Names to which a template gives values itself."""
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    return frozenset(stored | {macro.name for macro in tree.find_all(nodes.Macro)})


def _field_of(value: dict[Any, Any], key: Any) -> Any:
    try:
        return value[key]
    except (KeyError, TypeError):
        if isinstance(value, Struct):
            raise NoSuchFieldError from None
        return NOTHING


def _finalize(value: Any) -> str:
    kind = type(value)
    if kind is str or kind is Nothing:
        return value
    return "" if isinstance(value, Undefined) else to_text(value)


def _is_null(value: Any) -> bool:
    return isinstance(value, Undefined) or value is None or isinstance(value, Nothing)


def _let_null_pass(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that gives nothing for null, and gets text where it is about text."""
    place = 0 if _PassArg.from_obj(function) is None else 1

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        value, more = args[place], args[place + 1 :]
        if _is_null(value):
            if name in _WITH_DEFAULT:
                return more[0] if more else kwargs.get("default_value", kwargs.get("default", NOTHING))
            return 0 if name in _COUNT else NOTHING
        if name in _OF_STRINGS:
            value = _finalize(value)
        made = function(*args[:place], value, *more, **kwargs)
        return NOTHING if isinstance(made, Undefined) else made

    return apply


def _join(environment: RowEnvironment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    if _is_null(value):
        return NOTHING
    parts: Iterator[Any] = iter(value) if attribute is None else map(make_attrgetter(environment, attribute), value)
    return _finalize(d).join(map(_finalize, parts))


def _attr(environment: RowEnvironment, value: Any, name: Any) -> Any:
    return NOTHING if _is_null(value) else environment.getattr(value, str(name))


def _write_json(value: Any, indent: int | None = None) -> str:
    written = to_json(None if isinstance(value, Undefined) else value, nulls=True)
    return written if indent is None else json.dumps(json.loads(written), ensure_ascii=False, indent=indent)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    """`'%s' | format(x)`: numbers as they are, all else as text."""
    if _is_null(value):
        return NOTHING
    told: Any = {name: _as_argument(given) for name, given in kwargs.items()} or tuple(map(_as_argument, args))
    return _finalize(value) % told


def _as_argument(value: Any) -> Any:
    return value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else _finalize(value)
