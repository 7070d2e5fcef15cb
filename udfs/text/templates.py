"""The text of a row: a column, or a sandboxed Jinja2 template over several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from udfs.errors import EMPTY_INPUT, RowError, SpecError, bad_template

Renderer = Callable[[Mapping[str, Any]], tuple[str | None, RowError | None]]


def is_template(text: str) -> bool:
    """Whether `text` is a template and not a column's name."""
    return "{{" in text or "{%" in text


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template reads, sorted.

    Raises:
        SpecError: It is no Jinja2, or reads no column at all.
    """
    names = template_names(template)
    if not names:
        raise SpecError(f"the template {template!r} reads no column; write one as {{{{ name }}}}")
    return names


def template_names(template: str) -> tuple[str, ...]:
    """The names that a template reads, sorted; none of a constant text.

    Raises:
        SpecError: It is no Jinja2.
    """
    from jinja2 import TemplateSyntaxError, meta

    try:
        return tuple(sorted(meta.find_undeclared_variables(_environment().parse(template))))
    except TemplateSyntaxError as error:
        raise SpecError(f"the template does not parse, line {error.lineno}: {error.message}") from error


def compile_template(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from values to a text, in the sandbox."""
    return _environment().from_string(template).render


@dataclass(frozen=True)
class Texts:
    """A window's texts.

    Args:
        texts: (R,) strings, null where the row has failed.
        failures: Row number -> what is wrong with it.
    """

    texts: pa.Array
    failures: dict[int, RowError]


def read_texts(window: pa.Array, render: Renderer | None) -> Texts:
    """Take or render the text of every row; rows that are null, blank or break the template fail alone.

    Args:
        window: Strings, or with a template structs of the columns that it reads.
        render: What makes a row's text of its columns; None where the window is the texts.

    Raises:
        SpecError: The window's type does not fit.
    """
    if render is None:
        return _blank_out(_as_strings(window), {})
    if not pa.types.is_struct(window.type):
        raise SpecError(f"a template needs a struct of its columns, as in F.struct('title'), not {window.type}")
    failures: dict[int, RowError] = {}
    texts: list[str | None] = []
    for number, row in enumerate(window.to_pylist()):
        text, error = render(row or {})
        texts.append(text)
        if error:
            failures[number] = error
    return _blank_out(pa.array(texts, pa.string()), failures)


def make_renderer(template: str) -> Renderer:
    """A function from a row's columns to its text, or to what is wrong with it.

    A null column renders as nothing. A row whose columns are all null or blank is empty, whatever the template adds.
    """
    return render_rows(compile_template(template), template_columns(template))


def render_rows(
    write: Callable[[Mapping[str, Any]], str], names: tuple[str, ...], *, beside: str | None = None
) -> Renderer:
    """A function from a row's columns to what `write` makes of them, or to what is wrong with the row.

    Args:
        write: Gets a value for each name, an empty text for null. It may raise anything.
        names: Columns that it reads.
        beside: One of them, which does not save a row from being empty.
    """

    def render(row: Mapping[str, Any]) -> tuple[str | None, RowError | None]:
        values = {name: row.get(name) for name in names}
        if all(is_blank(value) for name, value in values.items() if name != beside):
            return None, EMPTY_INPUT
        try:
            # null as an empty text, so that it is nothing to filters and to ~ too
            return write({name: "" if value is None else value for name, value in values.items()}), None
        except Exception as error:  # noqa: BLE001 - a template can raise anything, and it is the row that fails
            return None, bad_template(error)

    return render


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


@functools.cache
def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(autoescape=False, finalize=lambda value: "" if value is None else value)


def _as_strings(window: pa.Array) -> pa.Array:
    if pa.types.is_string(window.type):
        return window
    if pa.types.is_null(window.type) or pa.types.is_large_string(window.type) or pa.types.is_string_view(window.type):
        return window.cast(pa.string())
    raise SpecError(f"the text column is {window.type}, not string; cast it, or use a template over a struct")


def _blank_out(texts: pa.Array, failures: dict[int, RowError]) -> Texts:
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
    for number in pc.indices_nonzero(empty).to_pylist():
        failures.setdefault(number, EMPTY_INPUT)
    return Texts(pc.if_else(empty, pa.scalar(None, pa.string()), texts), failures)
