"""Two texts of a row that a model reads together: how they are made of its columns, and travel as one string.

A pair is one string, so that what holds for texts (null, blank, identical) holds for it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from udfs.errors import SpecError
from udfs.text.templates import Renderer, is_template, make_renderer
from udfs.text.values import is_blank, is_nested

ColumnT = TypeVar("ColumnT")


def as_template(text: str) -> str:
    """A template as it is, and a column's name as a template that reads the column."""
    return text if is_template(text) else f"{{{{ col({json.dumps(text, ensure_ascii=False)}) }}}}"


def make_pair_renderer(text: str, text_pair: str) -> Renderer:
    """What makes a row's pair by two templates, or names of columns; a row is empty if one of its texts is.

    Raises:
        SpecError: One is no Jinja2, or reads no column at all.
    """
    parts = [make_renderer(as_template(part)) for part in (text, text_pair)]

    def write(values: Mapping[str, Any]) -> str:
        if any(part.is_empty(dict(values)) for part in parts):
            return ""
        texts = [part.write(values) for part in parts]
        return "" if any(map(is_blank, texts)) else join_pair(*texts)

    return Renderer(write, parts[0].reads | parts[1].reads)


def name_columns(columns: tuple[ColumnT, ...], names: tuple[str, ...]) -> dict[str, ColumnT]:
    """The columns that a UDF is called on, by the names that its texts are read by.

    Args:
        columns: What it is called on.
        names: Of the columns that are its texts by themselves.

    Raises:
        SpecError: They are not as many.
    """
    if len(columns) != len(names) or len(set(names)) < len(names):
        takes = f"{len(names)} columns, {' and '.join(names)}, or one struct of them" if names else "one column"
        raise SpecError(f"the UDF was called on {len(columns)} columns; it takes {takes}")
    return dict(zip(names, columns, strict=True))


def join_columns(batch: pa.Array | tuple[pa.Array, ...], names: tuple[str, ...]) -> pa.Array:
    """What a UDF is called on as one column: a single one as it is, two texts as a struct.

    Raises:
        SpecError: They are no texts, or not as many as `names`.
    """
    if not isinstance(batch, tuple):
        return batch
    named = name_columns(batch, names)
    for name, column in named.items():
        if is_nested(column.type):
            raise SpecError(f"the {name} is {column.type}, which is no text; call the UDF on a struct, by templates")
    return pa.StructArray.from_arrays(list(named.values()), list(named))


def join_pair(text: str, text_pair: str) -> str:
    """Both as one string: the length of the first in characters, a colon, and the two."""
    return f"{len(text)}:{text}{text_pair}"


def split_pair(pair: str) -> tuple[str, str]:
    """What `join_pair` joined."""
    length, _, texts = pair.partition(":")
    return texts[: int(length)], texts[int(length) :]


def split_pairs(pairs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first texts, and the second ones."""
    parts = [split_pair(pair) for pair in pairs]
    return [text for text, _ in parts], [text_pair for _, text_pair in parts]
