from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from udfs.text.schemas import InvalidAnswerError, answer_type, find_schema_problems, parse_answer


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, pa.string()),
        ({"enum": ["a", "b"]}, pa.string()),
        ({"type": ["integer", "null"]}, pa.int64()),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, pa.float64()),
        ({"type": "array", "items": {"type": "boolean"}}, pa.list_(pa.bool_())),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, pa.struct([("a", pa.int64())])),
        ({"type": ["string", "integer"]}, pa.string()),
        ({"type": "array"}, pa.string()),
        ({"$ref": "#/$defs/x", "$defs": {"x": {}}}, pa.string()),
    ],
)
def test_a_schema_has_a_type(schema: dict[str, Any], kind: pa.DataType) -> None:
    assert answer_type(schema) == kind


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 5},
        "score": {"type": "number"},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
        "author": {"type": ["object", "null"], "properties": {"name": {"type": "string"}}},
        "other": {"type": ["string", "integer"]},
    },
    "required": ["title"],
}


def test_an_answer_becomes_a_value_of_the_schema_s_type() -> None:
    text = '{"title": "tea", "score": 3, "count": 2.0, "tags": ["x"], "author": null, "other": 4}'
    value = parse_answer(text, json.dumps(SCHEMA))
    assert value == {"title": "tea", "score": 3.0, "count": 2, "tags": ["x"], "author": None, "other": "4"}
    assert pa.array([value], answer_type(SCHEMA)).to_pylist() == [value]


def test_what_is_not_required_may_be_absent() -> None:
    value = parse_answer('{"title": "a", "author": {}}', json.dumps(SCHEMA))
    assert value["score"] is None
    assert value["author"] == {"name": None}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"title": 3}', "{}", '{"title": "longer"}', '{"title": "a", "tags": ["z"]}'),
        *('{"title": "a", "score": NaN}', '{"title": "a", "count": 9223372036854775808}', '{"title": "a"} and more'),
        '{"title": "a", "count": 1e400}',
    ],
)
def test_an_answer_that_does_not_match_is_none(text: str) -> None:
    with pytest.raises(InvalidAnswerError):
        parse_answer(text, json.dumps(SCHEMA))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('{"type": "text"}', "no JSON schema: type:"),
        ("{}", "is empty"),
        ("{", "no JSON:"),
        ('{"properties": {"a": {"$ref": "https://example.org/s.json"}}}', "refers to 'https://example.org/s.json'"),
    ],
)
def test_a_schema_s_mistakes_are_told(schema: str, told: str) -> None:
    assert told in " ".join(find_schema_problems(schema))


def test_a_good_schema_has_no_mistakes() -> None:
    assert list(find_schema_problems(json.dumps(SCHEMA))) == []
