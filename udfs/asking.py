"""A row's questions as one string, so that what holds for texts (null, blank, identical) holds for them too.

This is the one place that knows how they are written: as JSON, a list of questions, each with its parts and where
the document stands in them, the longest of the row's columns, which alone is cut if the whole is too long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from udfs.errors import SpecError
from udfs.spec import ScoreSpec
from udfs.templating import Renderer, compile_template, is_blank, make_renderer, render_rows, template_names


@dataclass(frozen=True)
class Question:
    """What a model is asked once.

    Args:
        parts: Role and text of each message; of a bare prompt one part, whose role is empty.
        place: Which part holds the document, and where in it the document begins and ends, in characters.
        forced: Tokens that an encoder-decoder's answer begins with, beyond its start token.
    """

    parts: tuple[tuple[str, str], ...]
    place: tuple[int, int, int]
    forced: tuple[int, ...] = ()

    @property
    def is_chat(self) -> bool:
        return self.parts[0][0] != ""

    @property
    def document(self) -> str:
        part, start, end = self.place
        return self.parts[part][1][start:end]

    def cut(self, characters: int) -> Question:
        """The question with so many characters of its document."""
        return self.about(self.document[:characters])

    def about(self, document: str) -> Question:
        """The same question about another document."""
        part, start, end = self.place
        role, text = self.parts[part]
        parts = [*self.parts]
        parts[part] = (role, text[:start] + document + text[end:])
        return replace(self, parts=tuple(parts), place=(part, start, start + len(document)))


def ask(document: str, *, role: str = "", before: str = "", forced: tuple[int, ...] = ()) -> Question:
    """A question of one part: an instruction, then the document."""
    return Question(((role, before + document),), (0, len(before), len(before) + len(document)), forced)


def question_columns(spec: ScoreSpec) -> tuple[str, ...]:
    """The columns that a spec's templates read, sorted.

    Raises:
        SpecError: They are no Jinja2, or read no column, or not the variants.
    """
    names = {name for template in _templates(spec) for name in template_names(template)}
    if spec.variants and spec.variant_name not in names:
        raise SpecError(f"variants ask each row once a value, but no template reads {{{{ {spec.variant_name} }}}}")
    columns = names - {spec.variant_name} if spec.variants else names
    if not columns - {spec.variant_name}:
        raise SpecError("no template reads a column; write one as {{ name }}")
    return tuple(sorted(columns))


def make_asker(spec: ScoreSpec) -> Renderer | None:
    """What makes a row's text, or its questions, of its columns; None where the input column is the text."""
    if not spec.asks_questions:
        return make_renderer(spec.template) if spec.template is not None else None
    roles = [role for role, _ in spec.messages] or [""]
    compiled = [compile_template(template) for template in _templates(spec)]

    def write(values: Mapping[str, Any]) -> str:
        asked = [{str(spec.variant_name): variant} for variant in spec.variants] or [{}]
        texts = [[render({**values, **more}) for render in compiled] for more in asked]
        if all(is_blank(text) for text in texts[0]):
            return ""
        parts = [list(zip(roles, row, strict=True)) for row in texts]
        return json.dumps([[p, _find_document(p, values)] for p in parts], ensure_ascii=False)

    return render_rows(write, question_columns(spec), beside=spec.variant_name)


def read_questions(text: str, spec: ScoreSpec) -> list[Question]:
    """The questions of a row, one for each variant."""
    if not spec.asks_questions:
        return [ask(text)]
    return [
        Question(tuple((role, part) for role, part in parts), (place[0], place[1], place[2]))
        for parts, place in json.loads(text)
    ]


def _templates(spec: ScoreSpec) -> list[str]:
    return [template for _, template in spec.messages] or [spec.template or ""]


def _find_document(parts: list[tuple[str, str]], values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where the longest column stands as it is; the longest part where a filter has changed it."""
    for value in sorted((v for v in values.values() if isinstance(v, str) and v), key=len, reverse=True)[:1]:
        for number, (_, text) in enumerate(parts):
            if (start := text.find(value)) >= 0:
                return number, start, start + len(value)
    number = max(range(len(parts)), key=lambda n: len(parts[n][1]))
    return number, 0, len(parts[number][1])
