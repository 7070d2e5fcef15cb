"""What a value of any type is to a template, and as text."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from udfs.errors import SpecError
from udfs.text.templates import advise_template, make_renderer, read_texts, template_columns
from udfs.text.values import from_objects, to_text, to_values

US = pa.timestamp("us")
AUTHORS = [{"name": "Ann", "age": None}, {"name": None, "age": 3}]


def _render(template: str, **row: Any) -> str | None:
    kinds = {"attrs": pa.map_(pa.string(), pa.string()), "empty": pa.string(), "price": pa.float32()}
    fields = [pa.array([value], kinds.get(name)) for name, value in row.items()]
    read = read_texts(pa.StructArray.from_arrays(fields, list(row)), make_renderer(template))
    return read.texts.to_pylist()[0] if not read.failures else read.failures[0].code


def _text(value: Any, kind: pa.DataType) -> str:
    return to_text(to_values(pa.array([value], kind))[0])


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (True, pa.bool_(), "true"),
        (4.1, pa.float32(), "4.1"),
        (1e10, pa.float64(), "10000000000.0"),
        (float("inf"), pa.float64(), "Infinity"),
        (float("nan"), pa.float64(), ""),
        (Decimal("0E-10"), pa.decimal128(20, 10), "0.0000000000"),
        (datetime.date(5, 1, 2), pa.date32(), "0005-01-02"),
        (3_650_000, pa.date32(), "+11963-05-13"),
        (-800_000, pa.date32(), "-0221-09-04"),
        (400_000_000_000_000_000, US, "+14645-06-30 15:06:40"),
        (0, pa.timestamp("us", "Asia/Kolkata"), "1970-01-01 05:30:00"),
        (0, pa.timestamp("us", "+05:30"), "1970-01-01 05:30:00"),
        (0, pa.timestamp("us", "Z"), "1970-01-01 00:00:00"),
        (0, pa.timestamp("us", "GMT+8"), "1970-01-01 08:00:00"),
        (1, US, "1970-01-01 00:00:00.000001"),
        (500_000_000, pa.time64("ns"), "00:00:00.5"),
        (-1_500_000, pa.duration("us"), "INTERVAL '-0 00:00:01.5' DAY TO SECOND"),
        (b"\xffa", pa.binary(), "\ufffda"),
        (["a", None], pa.list_(pa.string()), '["a"]'),
        ([("k", None)], pa.map_(pa.string(), pa.int8()), "{}"),
        ({"a": 1.5, "b": None, "c": "\u2028"}, pa.struct([("a", "f4"), ("b", "i4"), ("c", "str")]), None),
        (None, pa.null(), ""),
    ],
)
def test_a_value_of_any_type_as_text(value: Any, kind: pa.DataType, text: str | None) -> None:
    assert _text(value, kind) == ('{"a": 1.5, "c": "\u2028"}' if text is None else text)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.map_(pa.int8(), pa.int64())])
def test_a_slice_holds_what_it_held(kind: pa.DataType) -> None:
    rows = [[(1, 1), (2, 2)], None, [(3, 3)], []] if pa.types.is_map(kind) else [[1, 2], None, [3], []]
    column = pa.array(rows, kind)
    assert to_values(column[1:]) == to_values(column)[1:]
    assert to_values(column[2:3]) == [{3: 3} if pa.types.is_map(kind) else [3]]


def test_what_nobody_reads_is_refused() -> None:
    with pytest.raises(SpecError, match="cast it to a string"):
        to_values(pa.nulls(1, pa.month_day_nano_interval()))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ empty | upper }}|{{ empty ~ '!' }}|{{ empty }}{{ p.none }}{{ p.none.deeper | trim }}", "|!|"),
        ("{{ tags | join(',') }}", "a,,b"),
        ("{{ [empty, p.none, 'x'] | join('-') }}", "--x"),
        ("{{ empty | round(2) }}{{ empty | int }}{{ empty + 1 }}{{ 2 * empty }}{{ empty | first }}.", "."),
        ("{% if empty > 3 %}more{% endif %}{% for x in empty %}x{% endfor %}{{ empty.strip() ~ empty.items() }}.", "."),
        ("{{ empty | default('none') }} {{ attrs.size | default('none') }} {{ empty is none }}", "none none true"),
        ("{{ tags | tojson }} {{ tags | length }} {{ empty | length }}", '["a", null, "b"] 3 0'),
        ("{{ p.items }} {{ p.values }} {{ p['keys'] }}", "1 2 3"),
        ("{% for k, v in p.items() %}{{ k }}{% endfor %}", "itemsvalueskeysnone"),
        ("{{ attrs.items }}{{ attrs.get('color') }} {{ attrs.items() | list | length }}", "red 1"),
        ("{{ '%s %.1f' | format(yes, price) }} {{ yes | string }} {{ [yes] | join }}", "true 4.1 true true"),
        ("{% set s = 'a' %}{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(s) }}{{ m(yes) }}", "<a><true>"),
        (
            "{% set n = namespace(n=0) %}{% for t in tags %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}{{yes}}",
            "3true",
        ),
    ],
)
def test_null_is_nothing_and_fields_win_over_methods(template: str, text: str) -> None:
    p = {"items": 1, "values": 2, "keys": 3, "none": None}
    row = {"empty": None, "p": p, "tags": ["a", None, "b"], "attrs": [("color", "red")], "yes": True, "price": 4.1}
    assert _render(template + "{% if yes %}{% endif %}", **row) == text


@pytest.mark.parametrize(
    "template", ["{% set t = title | trim %}{{ t.upper }}", "{{ range(3).index }}{{ title }}", "{{ p[title] }}"]
)
def test_a_function_is_no_text_and_no_struct_has_other_fields(template: str) -> None:
    assert _render(template, title="x", p={"a": 1}) == "bad_template"


@pytest.mark.parametrize(
    ("template", "row", "empty"),
    [
        ("Title: {{ p.title }}", {"p": {"title": None, "price": 3}}, True),
        ("Title: {{ p.title }} {{ p.price }}", {"p": {"title": None, "price": 3}}, False),
        ("{{ p }}", {"p": {"title": " ", "price": None}}, True),
        ("{% for a in authors %}- {{ a.name }}{% endfor %}", {"authors": [{"name": None, "age": 3}]}, True),
        ("{% for a in authors %}- {{ a.name }}{% endfor %}", {"authors": AUTHORS}, False),
        ("By {{ authors | map(attribute='name') | join(', ') }}", {"authors": AUTHORS[1:]}, True),
        ("By {{ authors | sort(attribute='age') | length }}", {"authors": AUTHORS[1:]}, False),
        ("{{ tags | join(', ') }}.", {"tags": [None, " ", ""]}, True),
        ("Color: {{ attrs.color }}", {"attrs": [("size", "1")]}, True),
        ("{{ yes }}", {"yes": False}, False),
        ("Price {{ price }}", {"price": float("nan")}, True),
    ],
)
def test_a_row_of_which_all_that_is_read_is_null_or_blank_is_empty(template: str, row: Any, empty: bool) -> None:
    assert (_render(template, **row) == "empty_input") is empty


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("{% if a %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", ("a",)),
        ("{% if a %}{% set x = 1 %}{% endif %}{{ x }}", ("a",)),
        ("{% set a = a | trim %}{{ a }}", ("a",)),
        ("{% set q = p %}{{ q.b }}", ("p",)),
        ("{% for x in d %}{{ x }}{{ loop.index }}{% endfor %}{{ x }}", ("d", "x")),
        ("{% for x in d if x.ok %}{{ y }}{% else %}{{ z }}{% endfor %}", ("d", "y", "z")),
        ("{% macro m(x, y=b) %}{{ x }}{{ c }}{{ varargs }}{% endmacro %}{{ m(a) }}", ("a", "b", "c")),
        ("{% with x = a %}{{ x }}{{ b }}{% endwith %}{{ x }}", ("a", "b", "x")),
        ("{% set x %}{{ a }}{% set y = 1 %}{% endset %}{{ x }}{{ y }}", ("a", "y")),
        ("{% filter upper %}{{ a }}{% endfilter %}", ("a",)),
        ("{% call(x) m(a) %}{{ x }}{{ b }}{% endcall %}", ("a", "b", "m")),
        ("{{ range }}{{ dict.x }}{{ cycler | upper }}{{ range(3) | list }}", ("cycler", "dict", "range")),
        ("{{ d[a][b] }}{{ d[c:] }}", ("a", "b", "c", "d")),
        ("{{ col('a b') }}{{ col('if').x }}{{ self }}", ("a b", "if", "self")),
        ("{% set col = 1 %}{{ col }}{{ a }}", ("a",)),
    ],
)
def test_what_a_template_sets_itself_is_no_column(template: str, columns: tuple[str, ...]) -> None:
    assert template_columns(template) == columns


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ p.titel }}", "reads p.titel, but p has the fields title, many"),
        ("{% for m in p.many %}{{ m.naem }}{% endfor %}", r"p.many\[0\].naem, but p.many\[0\] has the fields name"),
        ("{{ titel }}", "reads titel; the columns are p, title"),
        ("{{ title.titel }}", "title is string and has no fields"),
        ("{% set q = p %}{{ q.titel }}", "p.titel"),
    ],
)
def test_a_field_that_is_not_there_is_told_before_a_row_is_read(template: str, told: str) -> None:
    kind = pa.struct([("title", pa.string()), ("many", pa.list_(pa.struct([("name", pa.string())])))])
    window = pa.array([], pa.struct([("p", kind), ("title", pa.string())]))
    with pytest.raises(SpecError, match=told):
        read_texts(window, make_renderer(template))


@pytest.mark.parametrize("bad", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"x\x00\xfe"])
@pytest.mark.parametrize("template", [None, "{{ t }}"])
def test_bytes_that_are_no_utf8_are_read_with_a_mark_and_neighbours_as_they_are(bad: bytes, template: Any) -> None:
    column = pa.array([b"tea", bad, None]).cast(pa.binary()).view(pa.string())
    window = pa.StructArray.from_arrays([column], ["t"]) if template else column
    read = read_texts(window, make_renderer(template) if template else None)
    assert read.texts.to_pylist() == ["tea", bad.decode("utf-8", "replace"), None]
    assert read.failures.keys() == {2}


@pytest.mark.parametrize("template", ["{{ t }}{{ '\\ud800' }}", "{{ t }}{{ '%c' | format(55296) }}"])
def test_half_of_a_surrogate_pair_is_marked(template: str) -> None:
    assert _render(template, t="x") == "x\ufffd"


@pytest.mark.parametrize("text", ["a\x00b", "a\u2028b", "x" * 1_000_000, "\U0001f469\u200d", "\u200d\ufe0f"])
def test_odd_texts_are_read_as_they_are(text: str) -> None:
    assert _render("{{ t }}", t=text) == text
    assert read_texts(pa.array([text]), None).texts.to_pylist() == [text]


def test_what_is_no_text_is_told_with_what_to_write() -> None:
    assert "{{ tags | join(', ') }}" in advise_template("tags", pa.list_(pa.string()))
    assert "{{ o.a }}" in advise_template("o", pa.struct([("a", pa.int8())]))


def test_a_decimal_without_a_fraction_is_an_integer_by_arrow_and_by_pandas() -> None:
    for kind in (pa.decimal128(5, 0), pa.decimal128(38, 0)):
        column = pa.array([Decimal(7), None, Decimal(-12345)], kind)
        told = [type(value) for value in to_values(column)]
        assert told == [type(value) for value in from_objects(column.to_pylist())]
        assert told[0] is int
    (cost,) = to_values(pa.array([Decimal("7.00")], pa.decimal128(5, 2)))
    assert to_text(cost) == "7.00"


def test_an_interval_is_text_by_arrow_and_by_pandas() -> None:
    span = datetime.timedelta(days=1, seconds=2)
    told = to_values(pa.array([span, None], pa.duration("us")))
    assert from_objects([span, None]) == told == ["INTERVAL '1 00:00:02' DAY TO SECOND", ""]
    assert from_objects([pd.Timedelta(span), pd.NaT]) == told
