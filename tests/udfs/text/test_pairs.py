from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.errors import SpecError
from udfs.text.pairs import join_columns, join_pair, make_pair_renderer, split_pair, split_pairs
from udfs.text.templates import pack_texts, read_texts


@given(st.text(), st.text())
def test_a_pair_comes_back_from_its_one_string(text: str, text_pair: str) -> None:
    assert split_pair(join_pair(text, text_pair)) == (text, text_pair)


@given(st.lists(st.tuples(st.text("1:2a"), st.text("1:2a")), unique=True))
def test_different_pairs_are_different_strings(pairs: list[tuple[str, str]]) -> None:
    joined = [join_pair(*pair) for pair in pairs]
    assert len(set(joined)) == len(pairs)
    assert list(zip(*split_pairs(joined), strict=True)) == pairs


def _read(text: str, text_pair: str, rows: pa.Array) -> list[tuple[str, str] | str]:
    read = read_texts(rows, make_pair_renderer(text, text_pair))
    assert read_texts(pack_texts(read), None).texts.equals(read.texts)
    told = read.texts.to_pylist()
    return [read.failures[i].code if joined is None else split_pair(joined) for i, joined in enumerate(told)]


ROWS = pa.array(
    [
        {"first name": "a", "b": "x", "n": 3},
        {"first name": None, "b": "x", "n": 4},
        {"first name": " ", "b": "y", "n": 5},
        {"first name": "a", "b": "", "n": None},
        {"first name": "c", "b": "y", "n": 6},
    ]
)


@pytest.mark.parametrize(
    ("text", "text_pair", "told"),
    [
        ("first name", "b", [("a", "x"), "empty_input", "empty_input", "empty_input", ("c", "y")]),
        ("b", "n", [("x", "3"), ("x", "4"), ("y", "5"), "empty_input", ("y", "6")]),
        (
            "The {{ b }}",
            "{{ col('first name') }}!",
            [("The x", "a!"), "empty_input", "empty_input", "empty_input", ("The y", "c!")],
        ),
        ("{{ b }}{{ n }}", "n", [("x3", "3"), ("x4", "4"), ("y5", "5"), "empty_input", ("y6", "6")]),
        (
            "b",
            "{% if n > 4 %}{{ n }}{% endif %}",
            ["empty_input", "empty_input", ("y", "5"), "empty_input", ("y", "6")],
        ),
        (
            "b",
            "{{ 1 // (n - 3) }}",
            ["bad_template", ("x", "1"), ("y", "0"), "empty_input", ("y", "0")],
        ),
    ],
)
def test_a_row_is_empty_if_one_of_its_texts_is(text: str, text_pair: str, told: list[tuple[str, str] | str]) -> None:
    assert _read(text, text_pair, ROWS) == told


def test_what_either_text_reads_has_to_be_there() -> None:
    with pytest.raises(SpecError, match="the template reads c"):
        read_texts(ROWS, make_pair_renderer("b", "c"))
    with pytest.raises(SpecError, match="reads no column"):
        make_pair_renderer("b", "{{ 'x' }}")


def test_two_columns_are_the_two_texts() -> None:
    names = ("query", "document")
    joined = join_columns((pa.array(["q"]), pa.array(["d"])), names)
    assert joined.to_pylist() == [{"query": "q", "document": "d"}]
    assert join_columns(ROWS, names) is ROWS
    with pytest.raises(SpecError, match="called on 3 columns; it takes 2 columns, query and document, or one struct"):
        join_columns((pa.array(["q"]),) * 3, names)
    with pytest.raises(SpecError, match="called on 2 columns; it takes one column"):
        join_columns((pa.array(["q"]),) * 2, ())
    with pytest.raises(SpecError, match="the document is list"):
        join_columns((pa.array(["q"]), pa.array([["d"]])), names)
