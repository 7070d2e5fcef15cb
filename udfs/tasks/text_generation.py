"""A prompt or a chat to what the model writes next; how a row's columns become what it is asked.

A row's questions are one string, so that what holds for texts (null, blank, identical) holds for them too. This is the
one place that knows how they are written: as JSON, a list of questions, each with its parts and where the document
stands in them, the longest of the row's columns, which alone is cut if the whole is too long.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar

from udfs.errors import SpecError
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec, list_problems, option
from udfs.tasks.row_options import TOLD_IN_NUMBERS, pack_text
from udfs.tasks.text_classification import reads_pairs
from udfs.tasks.writing import Writing
from udfs.tasks.writing_options import Form, WritingOptions
from udfs.text.pairs import make_pair_renderer
from udfs.text.paths import EACH, values_at
from udfs.text.questions import Question, ask
from udfs.text.schemas import find_schema_problems
from udfs.text.templates import Renderer, is_template, make_renderer, render_by, template_names, template_reads
from udfs.text.values import is_blank, is_nothing, to_text

_ROLES = {"system", "user", "assistant"}


@dataclass(frozen=True, kw_only=True)
class TextGenerationOptions(WritingOptions):
    """What text-generation takes."""

    task: ClassVar[str] = "text-generation"
    chunks: ClassVar[None] = None

    messages: tuple[tuple[str, str], ...] | str = option(
        (),
        "Role (`system`, `user`, `assistant`) and Jinja2 template of each message of a chat; the model's own chat "
        "template joins them. Or the name of a column that is a chat: an array of structs with `role` and `content`.",
        for_engine=False,
    )
    variants: tuple[str, ...] = option(
        (), "Values for which each row is asked once; the answers are maps by them.", for_engine=False
    )
    variant_name: str | None = option(
        None,
        "What the templates call the value. Without `variants` it is a column like others, but one that does not count "
        "when a row is looked at for being empty.",
        for_engine=False,
    )
    json_schema: str | None = option(None, "A JSON schema that the answer has to match, as text.")
    choices: tuple[str, ...] = option((), "What the answer has to be one of.")

    @property
    def asked_for(self) -> tuple[str, ...]:
        return self.variants

    @property
    def form(self) -> Form:
        return Form(self.json_schema, self.choices) if self.json_schema or self.choices else super().form

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        if spec.template is not None and self.messages:
            yield "give a template or messages, not both"
        if isinstance(self.messages, str):
            yield from self._find_problems_of_chat()
        elif strange := sorted({role for role, _ in self.messages} - _ROLES):
            yield f"messages has the role {', '.join(map(repr, strange))}; roles are system, user and assistant"
        if self.json_schema is not None and self.choices:
            yield "schema and choices exclude each other: an answer is JSON or one of the choices"
        if self.response_format == "json_object" and (self.json_schema or self.choices):
            yield "response_format json_object says less than schema or choices; choose one"
        yield from list_problems("choices", self.choices)
        yield from list_problems("variants", self.variants)
        if any(choice != choice.strip() for choice in self.choices):
            yield "choices holds a value that begins or ends with a space"
        if cut := [stop for stop in self.stop if any(stop in choice for choice in self.choices)]:
            yield f"stop holds {cut[0]!r}, which would end a choice before its end"
        if self.variants and not (spec.template or self.messages):
            yield "variants need a prompt or messages that read them"
        if self.variants and not self.variant_name:
            yield "variants need a name by which the templates read them"
        if self.json_schema is not None:
            yield from find_schema_problems(self.json_schema)

    def _find_problems_of_chat(self) -> Iterator[str]:
        if is_template(str(self.messages)):
            yield "messages is a template; give a list of {role, content}, or the name of a column that is a chat"
        if self.variants:
            yield "variants need a prompt or messages that read them, and a chat in a column reads none"


class TextGeneration(Writing):
    """What a model writes to a prompt, or as the next message of a chat; once for each variant."""

    def __init__(self, spec: ScoreSpec[TextGenerationOptions], files: ModelFiles) -> None:
        self._is_chat, self._asks = bool(spec.options.messages), asks_questions(spec)
        messages = spec.options.messages  # of a column, each row has its own roles
        self._roles = () if isinstance(messages, str) else tuple(role for role, _ in messages)
        super().__init__(spec, files)

    def questions(self, text: str) -> list[Question]:
        return read_questions(text) if self._asks else [ask(text)]


def asks_questions(spec: ScoreSpec[Any]) -> bool:
    """A row's text is one string of several parts or questions, as this file writes it."""
    options = spec.options
    return isinstance(options, TextGenerationOptions) and bool(spec.template or options.messages)


def question_columns(spec: ScoreSpec[TextGenerationOptions]) -> tuple[str, ...]:
    """The columns that a spec's templates read, sorted.

    Raises:
        SpecError: They are no Jinja2, or read no column, or not the variants.
    """
    variants, variant = spec.options.variants, spec.options.variant_name
    if isinstance(spec.options.messages, str):
        return (spec.options.messages,)
    names = {name for template in _templates(spec) for name in template_names(template)}
    if variants and variant not in names:
        raise SpecError(f"variants ask each row once a value, but no template reads {{{{ {variant} }}}}")
    columns = names - {variant} if variants else names
    if not columns - {variant}:
        raise SpecError("no template reads a column; write one as {{ name }}")
    return tuple(sorted(columns))


def make_asker(spec: ScoreSpec[Any]) -> Renderer | None:
    """What makes a row's text, its pair or its questions of its columns; None where the input column is the text.

    Options of a row travel with its text.

    Raises:
        SpecError: There are options of a row, and no struct that they could be a field of.
    """
    column, ask = getattr(spec.options, "options_from", None), _make_asker(spec)
    if column is None:
        return ask
    if ask is None:
        raise SpecError("options_from names a field beside the text's; write the text as a template over both")

    def write(values: Mapping[str, Any]) -> str:
        text = ask.write(values)
        return "" if is_blank(text) else pack_text(text, _read_options(values[column]))

    return replace(ask, write=write, reads=ask.reads | {(column,)}, beside=ask.beside | {column})


def _read_options(value: Any) -> Any:
    """A row's options as JSON has them; what is none is told where they are checked."""
    if is_nothing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
        return "no JSON"
    told = plain_values(value)
    return {name: _as_told(name, each) for name, each in told.items()} if isinstance(told, dict) else told


def _as_told(name: str, value: Any) -> Any:
    """A number that is text, as in a map, whose values are of one type."""
    if not isinstance(value, str) or name not in TOLD_IN_NUMBERS:
        return value
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value)
    return value


def plain_values(value: Any) -> Any:
    """Values of columns as JSON has them, without those that are null."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(each) for key, each in value.items() if not is_nothing(each)}
    if isinstance(value, list | tuple):
        return [plain_values(each) for each in value if not is_nothing(each)]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if isinstance(value, bool | int | float | str) else to_text(value)


def _make_asker(spec: ScoreSpec[Any]) -> Renderer | None:
    if reads_pairs(spec):
        return make_pair_renderer(spec.template or "text", spec.options.text_pair)
    if not asks_questions(spec):
        return make_renderer(spec.template) if spec.template is not None else None
    options: TextGenerationOptions = spec.options
    if isinstance(options.messages, str):
        return _ask_chat(options.messages)
    roles = [role for role, _ in options.messages] or [""]
    compiled = [render_by(template) for template in _templates(spec)]
    reads = frozenset(path for template in _templates(spec) for path in template_reads(template))
    if options.variants:
        reads = frozenset(path for path in reads if path[0] != options.variant_name)

    def write(values: Mapping[str, Any]) -> str:
        asked = [{str(options.variant_name): variant} for variant in options.variants] or [{}]
        texts = [[render({**values, **more}) for render in compiled] for more in asked]
        if all(is_blank(text) for text in texts[0]):
            return ""
        parts = [list(zip(roles, row, strict=True)) for row in texts]
        found = [value for path in reads for value in values_at(values, path) if isinstance(value, str)]
        return _write_questions((p, _find_document(p, found)) for p in parts)

    question_columns(spec)
    return Renderer(write, reads, beside=frozenset([options.variant_name] if options.variant_name else ()))


def _ask_chat(column: str) -> Renderer:
    """What makes a row's question of a column that is a chat."""

    def write(values: Mapping[str, Any]) -> str:
        messages = [message for message in values[column] if not is_nothing(message)]
        parts = [(to_text(message["role"]).strip(), to_text(message["content"])) for message in messages]
        if not all(role for role, _ in parts):
            raise ValueError("a message has no role")
        return _write_questions([(parts, _find_document(parts, [text for _, text in parts]))])

    return Renderer(write, frozenset({(column, EACH, "role"), (column, EACH, "content")}), chat=column)


def _write_questions(questions: Iterable[tuple[list[tuple[str, str]], tuple[int, int, int]]]) -> str:
    return json.dumps(list(questions), ensure_ascii=False)


def read_questions(text: str) -> list[Question]:
    """The questions of a row, one for each variant."""
    return [
        Question(tuple((role, part) for role, part in parts), (place[0], place[1], place[2]))
        for parts, place in json.loads(text)
    ]


def _templates(spec: ScoreSpec[TextGenerationOptions]) -> list[str]:
    messages = spec.options.messages
    return [] if isinstance(messages, str) else [template for _, template in messages] or [spec.template or ""]


def _find_document(parts: list[tuple[str, str]], texts: Iterable[str]) -> tuple[int, int, int]:
    """Where the longest text that was read stands as it is; the longest part where a filter has changed it."""
    longest = max(texts, key=len, default="")
    for number, (_, text) in enumerate(parts):
        if longest and (start := text.find(longest)) >= 0:
            return number, start, start + len(longest)
    number = max(range(len(parts)), key=lambda n: len(parts[n][1]))
    return number, 0, len(parts[number][1])
