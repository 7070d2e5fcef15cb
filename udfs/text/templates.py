"""The text of a row: a column, or a sandboxed Jinja2 template over several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from udfs.errors import EMPTY_INPUT, GristmillError, RowError, SpecError, bad_template, unreadable
from udfs.text.paths import Path, find_missing, is_empty
from udfs.text.values import NOTHING, is_blank, is_nested, is_variant, to_strings, to_text, to_values

READ = pa.struct([(f"gristmill {name}", pa.string()) for name in ("text", "code", "message")])


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
    return tuple(sorted({str(path[0]) for path in template_reads(template)}))


@functools.lru_cache
def template_reads(template: str) -> frozenset[Path]:
    """What a template reads of its columns, as paths into them.

    Raises:
        SpecError: It is no Jinja2.
    """
    from jinja2 import TemplateSyntaxError

    from udfs.text.reads import find_reads

    try:
        return find_reads(_environment().parse(template))
    except TemplateSyntaxError as error:
        raise SpecError(f"the template does not parse, line {error.lineno}: {error.message}") from error


def template_literals(template: str) -> tuple[str, ...]:
    """The texts that a template writes itself, or joins others by, in their order."""
    from jinja2 import nodes

    found = _environment().parse(template).find_all((nodes.TemplateData, nodes.Const))
    return tuple(str(node.data if isinstance(node, nodes.TemplateData) else node.value) for node in found)


def compile_template(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from values to a text, in the sandbox."""
    compiled = _environment().from_string(template)
    calls = compiled.globals if "(" in template else {}  # what else Jinja's functions would be for

    def render(values: Mapping[str, Any]) -> str:
        # As its `render`, without copies of the values, and without a traceback that nobody sees.
        context = compiled.new_context({**calls, **values} if calls else dict(values), shared=True)
        return "".join(compiled.root_render_func(context))

    return render


@dataclass(frozen=True)
class Texts:
    """A window's texts.

    Args:
        texts: (R,) strings, null where the row has failed.
        failures: Row number -> what is wrong with it.
    """

    texts: pa.Array
    failures: dict[int, RowError]


@dataclass(frozen=True)
class Renderer:
    """Makes a row's text of its columns.

    Args:
        write: Gets the values of the columns, null as `NOTHING`. It may raise anything.
        reads: What it reads of them.
        beside: Columns which do not save a row from being empty.
        chat: A column that is a chat; it may stand for the whole struct.
    """

    write: Callable[[Mapping[str, Any]], str]
    reads: frozenset[Path]
    beside: frozenset[str] = frozenset()
    chat: str | None = None

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(sorted({str(path[0]) for path in self.reads}))

    @functools.cached_property
    def _whole(self) -> list[str]:
        """Columns that are read as a whole."""
        return [str(path[0]) for path in self.reads if len(path) == 1 and path[0] not in self.beside]

    @functools.cached_property
    def _within(self) -> list[Path]:
        counted = (path for path in self.reads if path[0] not in self.beside)
        return [path for path in counted if len(path) > 1 and (self.chat is None or path[-1] == "content")]

    def __call__(self, row: Mapping[str, Any]) -> tuple[str | None, RowError | None]:
        """A row's text, or what is wrong with it."""
        return self.render({name: NOTHING if (value := row.get(name)) is None else value for name in self.columns})

    def render(self, values: dict[str, Any]) -> tuple[str | None, RowError | None]:
        """As a call, of values for all columns.

        A row of which all that is read is null, empty or blank is empty, whatever the template adds.
        """
        if self.is_empty(values):
            return None, EMPTY_INPUT
        try:
            return self.write(values), None
        except Exception as error:  # noqa: BLE001 - a template can raise anything, and it is the row that fails
            return None, bad_template(error)

    def is_empty(self, values: dict[str, Any]) -> bool:
        """All that is read is null, empty or blank."""
        for name in self._whole:
            if not is_blank(values[name]):
                return False
        return not self._within or is_empty(values, self._within)

    def check(self, kind: pa.DataType) -> None:
        """Check a struct's type before a row is read.

        Raises:
            SpecError: It is no struct, or has not what is read.
        """
        if not pa.types.is_struct(kind) or is_variant(kind):
            raise SpecError(f"a template needs a struct of its columns, as in F.struct('title'), not {kind}")
        if missing := self.find_missing(list(kind)):
            raise SpecError(missing)

    def find_missing(self, columns: list[pa.Field]) -> str | None:
        """What is read and not there, or not to be read so, in a line."""
        if missing := find_missing(self.reads, columns):
            return f"the template reads {missing}"
        kinds = {field.name: field.type for field in columns}
        if self.chat is None or pa.types.is_null(kinds[self.chat]) or _is_chat(kinds[self.chat]):
            return None
        return (
            f"the column {self.chat} is {kinds[self.chat]}, which is no chat: an array of structs with `role` and "
            "`content`, both strings"
        )

    def rows(self, window: pa.StructArray) -> list[dict[str, Any]]:
        """A window's columns as rows of values."""
        kept = [field for field in window.type if field.name in self.columns]
        fields = dict(zip((field.name for field in window.type), window.flatten(), strict=True))
        columns = [to_values(fields[field.name]) for field in kept]
        names = [field.name for field in kept]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def make_renderer(template: str) -> Renderer:
    """What makes a row's text by a template.

    Raises:
        SpecError: It is no Jinja2, or reads no column at all.
    """
    template_columns(template)
    return Renderer(render_by(template), template_reads(template))


def render_by(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from the values of columns to a text; columns go by the names that the compiled template has."""
    from udfs.text.environment import symbols_in

    render, symbols = compile_template(template), symbols_in(_environment().parse(template))
    if not symbols:
        return render
    return lambda values: render({**values, **{symbol: values[name] for symbol, name in symbols.items()}})


def read_texts(window: pa.Array, render: Renderer | None) -> Texts:
    """Take or render the text of every row; rows that are null, blank or break the template fail alone.

    Args:
        window: What is text by itself, or with a template structs of the columns that it reads; or texts that are read
            already, as `pack_texts` has them.
        render: What makes a row's text of its columns; None where the window is the texts.

    Raises:
        SpecError: The window's type does not fit.
    """
    if window.type == READ:
        return _unpack_texts(window)
    if render is not None:
        if render.chat is not None and not pa.types.is_struct(window.type):
            window = pa.StructArray.from_arrays([window], [render.chat])
        render.check(window.type)
    elif is_nested(window.type):
        raise SpecError(f"the text column is {window.type}, which is no text; {advise_template('COLUMN', window.type)}")
    return _read_each(window, lambda part: _as_texts(part) if render is None else _render(render.rows(part), render))


def read_objects(columns: Mapping[str, list[Any]], render: Renderer | None) -> Texts:
    """As `read_texts`, of values that did not come by Arrow; without a template of the one column."""
    if render is None:
        (values,) = columns.values()
        if any(isinstance(value, dict | list) for value in values):
            raise SpecError("the text column holds arrays, maps or structs, which are no text; write a template")
        return _blank_out(to_strings([None if value is NOTHING else to_text(value) for value in values]), {})
    if missing := render.find_missing([pa.field(name, pa.null()) for name in columns]):
        raise SpecError(missing)
    return _render([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], render)


def _render(rows: list[dict[str, Any]], render: Renderer) -> Texts:
    failures: dict[int, RowError] = {}
    texts: list[str | None] = []
    for number, row in enumerate(rows):
        text, error = render.render(row)
        texts.append(text)
        if error:
            failures[number] = error
    return _blank_out(to_strings(texts), failures)


def _as_texts(window: pa.Array) -> Texts:
    if pa.types.is_string(window.type):
        try:
            window.validate(full=True)
            return _blank_out(window, {})
        except pa.ArrowInvalid:  # not UTF-8
            pass
    return _blank_out(to_strings([None if value is NOTHING else to_text(value) for value in to_values(window)]), {})


def _read_each(window: pa.Array, read: Callable[[pa.Array], Texts]) -> Texts:
    """Read a window's rows, so that one on which reading breaks fails alone."""
    try:
        return read(window)
    except GristmillError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library does not take, it is the row that fails
        if len(window) == 1:
            return Texts(pa.nulls(1, pa.string()), {0: unreadable(error)})
    half = len(window) // 2
    first, second = _read_each(window[:half], read), _read_each(window[half:], read)
    failures = {**first.failures, **{half + row: error for row, error in second.failures.items()}}
    return Texts(pa.concat_arrays([first.texts, second.texts]), failures)


def pack_texts(read: Texts) -> pa.StructArray:
    """Texts as a column, to be sent, or read again by `read_texts`."""
    errors = [read.failures.get(row) for row in range(len(read.texts))]
    told = [[error and error.code for error in errors], [error and error.message for error in errors]]
    return pa.StructArray.from_arrays([read.texts, *(pa.array(t, pa.string()) for t in told)], fields=list(READ))


def _unpack_texts(packed: pa.StructArray) -> Texts:
    texts, *told = packed.flatten()
    errors = zip(*(part.to_pylist() for part in told), strict=True)
    return Texts(texts, {row: RowError(code, message) for row, (code, message) in enumerate(errors) if code})


def _is_chat(kind: pa.DataType) -> bool:
    message = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if message is None or not pa.types.is_struct(message):
        return False
    texts = {field.name for field in message if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}
    return {"role", "content"} <= texts


@functools.cache
def _environment() -> Any:
    from udfs.text.environment import RowEnvironment

    return RowEnvironment()


def advise_template(column: str, kind: pa.DataType) -> str:
    """What to write instead of a column that is no text by itself."""
    if pa.types.is_map(kind):
        return f"write what to read of it, as in {{{{ {column}['key'] }}}}"
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return f"write what to read of it, as in {{{{ {column}.{names[0] if names else 'field'} }}}}"
    return f"write {{{{ {column} | join(', ') }}}}, or loop over it"


def _blank_out(texts: pa.Array, failures: dict[int, RowError]) -> Texts:
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
    for number in pc.indices_nonzero(empty).to_pylist():
        failures.setdefault(number, EMPTY_INPUT)
    return Texts(pc.if_else(empty, pa.scalar(None, pa.string()), texts), failures)
