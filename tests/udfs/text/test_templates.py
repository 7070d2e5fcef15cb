from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from udfs.errors import SpecError
from udfs.text.templates import is_template, make_renderer, read_texts, template_columns


def _texts(
    template: str | None, rows: list[Any], kind: pa.DataType | None = None
) -> tuple[list[str | None], dict[int, str]]:
    read = read_texts(pa.array(rows, kind), make_renderer(template) if template else None)
    return read.texts.to_pylist(), {row: error.code for row, error in read.failures.items()}


def test_a_null_column_renders_as_nothing() -> None:
    rows = [{"a": "kettle", "b": None}, {"a": None, "b": "red"}]
    assert _texts("{{ a }}/{{ b }}", rows) == (["kettle/", "/red"], {})


@pytest.mark.parametrize("template", ["{{ a | trim }}{{ b }}", "{{ a ~ b }}", "{{ a | upper }}{{ b }}"])
def test_a_null_column_renders_as_nothing_through_filters_too(template: str) -> None:
    assert make_renderer(template)({"a": None, "b": "red"})[0] == "red"


def test_a_row_with_all_columns_null_or_blank_is_empty_whatever_the_template_adds() -> None:
    assert _texts("Item: {{ a }} {{ b }}.", [{"a": None, "b": " "}, {"a": "x", "b": None}]) == (
        [None, "Item: x ."],
        {0: "empty_input"},
    )
    assert _texts("{{ a }}", [None], pa.struct([("a", pa.string())])) == ([None], {0: "empty_input"})


def test_null_and_blank_texts_fail_alone() -> None:
    texts, failures = _texts(None, ["tea", None, "", " \n\t\u00a0\u3000", "👩‍👩‍👧"], pa.string())
    assert texts == ["tea", None, None, None, "👩‍👩‍👧"]
    assert failures == dict.fromkeys((1, 2, 3), "empty_input")


def test_a_template_that_breaks_fails_its_row_without_quoting_it() -> None:
    read = read_texts(
        pa.array([{"s": "secret", "n": 0}, {"s": "plain", "n": 2}]), make_renderer("{{ s }} {{ 4 // n }}")
    )
    assert read.texts.to_pylist() == [None, "plain 2"]
    assert read.failures[0].code == "bad_template"
    assert "ZeroDivisionError" in read.failures[0].message
    assert "secret" not in read.failures[0].message


@pytest.mark.parametrize(
    "attack",
    [
        "{{ s.__class__.__mro__ }}",
        "{{ s.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }} {{ s }}",
        "{{ words.append(s) }}",
        "{{ range(10 ** 9) | list }} {{ s }}",
    ],
)
def test_the_sandbox_fails_the_row_that_tries_to_get_out(attack: str) -> None:
    text, error = make_renderer(attack)({"s": "x", "words": ["y"]})
    assert text is None
    assert error is not None
    assert error.code == "bad_template"
    assert error.message in {"the template raised SecurityError", "the template raised OverflowError"}


@pytest.mark.parametrize("attack", ["{{ s.__class__ }}", "{{ '{0.__class__}'.format(s) }}"])
def test_the_sandbox_shows_nothing_of_python(attack: str) -> None:
    assert make_renderer(attack)({"s": "x"}) == ("", None)


def test_integers_stay_integers_beside_nulls() -> None:
    assert _texts("{{ n }}", [{"n": 3}, {"n": None}, {"n": 2**60}])[0] == ["3", None, str(2**60)]


def test_the_columns_of_a_template_are_found() -> None:
    assert template_columns("{% if a %}{{ b.c }}{% endif %}{% for x in d %}{{ x }}{% endfor %}") == ("a", "b", "d")
    assert is_template("{{ a }}")
    assert not is_template("a")


@pytest.mark.parametrize(("template", "told"), [("{{ a", "does not parse, line 1"), ("{{ 'a' }}", "reads no column")])
def test_a_template_that_is_none_is_refused(template: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        template_columns(template)


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(SpecError, match=r"join\(', '\)"):
        read_texts(pa.array([["a"]]), None)
    with pytest.raises(SpecError, match="struct"):
        read_texts(pa.array(["a"]), make_renderer("{{ a }}"))


_PART = pa.struct([pa.field("x", pa.string()), pa.field("y", pa.struct([pa.field("z", pa.int32())]))])
_NESTED = [
    pa.field("parts", pa.list_(_PART)),
    pa.field("m", pa.map_(pa.string(), _PART)),
    pa.field("p", _PART),
    pa.field("t", pa.string()),
]


@pytest.mark.parametrize(
    ("template", "read"),
    [
        ("{{ (parts|first).nope }}", "parts[0].nope"),
        ("{{ (parts|sort(attribute='x')|last).y.nope }}", "parts[0].y.nope"),
        ("{{ (parts|map(attribute='y')|first).nope }}", "parts[0].y.nope"),
        ("{{ parts|selectattr('nope')|list|length }}", "parts[0].nope"),
        ("{{ parts[:2]|map(attribute='nope')|join }}", "parts[0].nope"),
        ("{{ parts|groupby('nope') }}", "parts[0].nope"),
        ("{% for part in parts|rejectattr('x') %}{{ part.nope }}{% endfor %}", "parts[0].nope"),
        ("{% for part in parts|sort(attribute='nope') %}{{ part.x }}{% endfor %}", "parts[0].nope"),
        ("{% for k, v in m.items() %}{{ v.nope }}{% endfor %}", "m[…].nope"),
        ("{% for k, v in m|dictsort %}{{ v.nope }}{% endfor %}", "m[…].nope"),
        ("{% for v in m.values() %}{{ v.nope }}{% endfor %}", "m[…].nope"),
        ("{{ m.get('a').nope }}", "m['a'].nope"),
        ("{{ (p|default({})).nope }}", "p.nope"),
        ("{{ p|attr('nope') }}", "p.nope"),
        ("{{ p.get('nope') }}", "p.nope"),
        ("{% set first = parts|first %}{{ first.nope }}", "parts[0].nope"),
        ("{% for part in (parts or []) %}{{ part.nope }}{% endfor %}", "parts[0].nope"),
        ("{{ (p if t else {}).nope }}", "p.nope"),
    ],
)
def test_a_field_that_is_not_there_is_told_through_filters_and_loops(template: str, read: str) -> None:
    told = make_renderer(template).find_missing(_NESTED)
    assert told is not None
    assert f"reads {read}, but" in told
    mended = template.replace("y.nope", "y.z").replace("'y')|first).nope", "'y')|first).z").replace("nope", "x")
    assert make_renderer(mended).find_missing(_NESTED) is None


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% for part in m[t].parts %}{{ part.x }}{% endfor %}", "m t"),
        ("{% for part in more|default(parts) %}{{ part.x }}{% endfor %}", "more parts"),
        ("{% for part in (more or parts) %}{{ part.x }}{% endfor %}", "more parts"),
        ("{% for part in (parts if t else more) %}{{ part.x }}{% endfor %}", "more parts t"),
        ("{% for part in m.get('a')[t].parts %}{{ part.x }}{% endfor %}", "m t"),
        ("{{ (m[t]|default(parts)).x }}", "m parts t"),
    ],
)
def test_what_a_loop_goes_over_is_read_with_its_keys_and_what_stands_instead(template: str, names: str) -> None:
    assert list(template_columns(template)) == names.split()


def test_a_field_by_the_filter_attr_is_the_structs() -> None:
    window = pa.array([{"p": {"x": "tea", "items": "cup"}}])
    render = make_renderer("{{ p|attr('x') }} {{ p|attr('items') }} {{ [p]|map('attr', 'x')|first }}")
    assert read_texts(window, render).texts.to_pylist() == ["tea cup tea"]
