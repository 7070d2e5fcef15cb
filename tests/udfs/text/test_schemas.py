from __future__ import annotations

import datetime
import json
import re
from enum import StrEnum
from typing import Any, Literal

import llguidance
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from udfs.text.schema_parts import _vocabulary, close_schema, hold_schema
from udfs.text.schemas import InvalidAnswerError, answer_type, find_schema_problems, parse_answer, tell_schema

_TOLD_ANYWAY = {"patternProperties", "format", "additionalProperties"}


def validate(schema: str) -> str:
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    return str(llguidance.LLMatcher.validate_grammar(grammar))


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
        ({"const": "a"}, pa.string()),
        ({"const": 3}, pa.int64()),
        ({"enum": [1, 2, None]}, pa.int64()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"enum": [True]}, pa.bool_()),
        ({"enum": ["a", 1]}, pa.string()),
        ({"type": "number", "enum": [1, 2]}, pa.float64()),
        ({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"enum": [1]}}, "description": "a"}, pa.int64()),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, pa.int64()),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"$ref": "#/$defs/c"}, "c": {"type": "boolean"}}}, pa.bool_()),
        ({"$id": "https://e.org/s", "$ref": "https://e.org/s#/$defs/x", "$defs": {"x": {"const": 1}}}, pa.int64()),
        ({"oneOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"type": "integer"}}}, pa.int64()),
        ({"anyOf": [{"$ref": "#/$defs/none"}, {"const": 1}], "$defs": {"none": {"const": None}}}, pa.int64()),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]}, pa.float64()),
        ({"anyOf": [{"const": "a"}, {"enum": ["b", None]}]}, pa.string()),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, pa.string()),
        ({"type": "array", "prefixItems": [{"type": "integer"}] * 2, "maxItems": 2}, pa.list_(pa.int64())),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
            pa.struct([("_1", pa.int64()), ("_2", pa.string())]),
        ),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": True}, pa.string()),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, pa.map_(pa.string(), pa.int64())),
        ({"type": "object"}, pa.string()),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}, pa.string()),
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


class Mood(StrEnum):
    good = "good"
    bad = "bad"


class Address(BaseModel):
    street: str
    zip: str | None = None


class Node(BaseModel):
    name: str
    below: list[Node] = []


class Answer(BaseModel):
    mood: Mood = Field(description="as a whole")
    only: Literal["x"]
    level: Literal[1, 2]
    home: Address
    former: Address | None = None
    others: list[Address]
    pair: tuple[int, str]
    counts: dict[str, int]
    price: float = Field(multiple_of=0.01)
    size: int | float
    when: datetime.date
    tree: Node
    mixed: int | str


def test_a_schema_of_pydantic_s_gives_real_columns() -> None:
    schema = json.dumps(Answer.model_json_schema())
    assert list(find_schema_problems(schema)) == []
    assert tell_schema(schema) == []
    address = pa.struct([("street", pa.string()), ("zip", pa.string())])
    wanted = {"mood": pa.string(), "only": pa.string(), "level": pa.int64(), "home": address, "former": address}
    wanted |= {"others": pa.list_(address), "pair": pa.struct([("_1", pa.int64()), ("_2", pa.string())])}
    wanted |= {
        "counts": pa.map_(pa.string(), pa.int64()),
        "price": pa.float64(),
        "size": pa.float64(),
        "when": pa.string(),
    }
    wanted |= {"tree": pa.struct([("name", pa.string()), ("below", pa.list_(pa.string()))]), "mixed": pa.string()}
    assert {field.name: field.type for field in answer_type(json.loads(schema))} == wanted
    answer = Answer(
        mood=Mood.good,
        only="x",
        level=2,
        home=Address(street="a"),
        others=[Address(street="b", zip="1")],
        pair=(3, "c"),
        counts={"d": 4},
        price=0.07,
        size=1.5,
        when=datetime.date(2026, 1, 2),
        tree=Node(name="e", below=[Node(name="f")]),
        mixed=5,
    )
    value = parse_answer(answer.model_dump_json(), schema)
    (read,) = pa.array([value], answer_type(json.loads(schema))).to_pylist(maps_as_pydicts="strict")
    told = answer.model_dump(mode="json")
    assert read == told | {"pair": {"_1": 3, "_2": "c"}, "mixed": "5"} | {
        "tree": {"name": "e", "below": ['{"name": "f", "below": []}']}
    }


def test_an_object_has_the_keys_that_its_schema_names_unless_it_says_otherwise() -> None:
    properties = {"type": "object", "properties": {"a": {"type": "integer"}}}
    invented = '{"a": 1, "b": 2}'
    with pytest.raises(InvalidAnswerError, match="does not match the schema: additionalProperties"):
        parse_answer(invented, json.dumps(properties))
    for is_open in ({"additionalProperties": True}, {"allOf": [{"properties": {"b": {"type": "integer"}}}]}):
        schema = json.dumps(properties | is_open)
        assert parse_answer(invented, schema)["a"] == 1
        assert "keys that it does not name" in tell_schema(schema)[0]
    nested = json.dumps({"anyOf": [properties, {"type": "null"}], "description": "a"})
    assert json.loads(close_schema(nested))["anyOf"][0]["additionalProperties"] is False
    assert parse_answer(invented, '{"type": "object"}') == invented


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
        '{"title": "a", "score": 1e400}',
        '{"title": "a", "other": "\\ud800"}',
    ],
)
def test_an_answer_that_does_not_match_is_none(text: str) -> None:
    with pytest.raises(InvalidAnswerError):
        parse_answer(text, json.dumps(SCHEMA))


@pytest.mark.parametrize(
    ("schema", "text", "told"),
    [
        ({"type": "integer"}, "9223372036854775808", "answer is an integer of more than 64 bits"),
        ({"type": "integer"}, "1" * 5000, "an integer of thousands of digits"),
        (
            {"properties": {"a": {"items": {"type": "integer"}, "type": "array"}}, "type": "object"},
            '{"a": [1e30]}',
            "a[]",
        ),
        ({"type": "number"}, "1" + "0" * 400, "answer is a number of more than 64 bits"),
        ({"type": "string"}, '"\\ud83d"', "half a character"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, '{"\\udc00": "a"}', "half a character"),
        ({}, '["\\ud83d"]', "half a character"),
        ({"type": "string"}, '"secret', "no JSON: Unterminated string"),
        ({"type": "array", "items": {"maxLength": 3}}, '["secret"]', "does not match the schema: items.maxLength"),
        ({}, "[" * 100_000, "nested too deep"),
    ],
)
def test_an_answer_that_no_column_holds_says_why_and_nothing_of_itself(schema: Any, text: str, told: str) -> None:
    with pytest.raises(InvalidAnswerError, match=re.escape(told)) as raised:
        parse_answer(text, json.dumps(schema or {"description": "anything"}))
    assert "secret" not in str(raised.value)


def test_a_multiple_is_told_by_its_digits() -> None:
    schema = json.dumps({"type": "number", "multipleOf": 0.01})
    assert parse_answer("0.07", schema) == 0.07
    with pytest.raises(InvalidAnswerError):
        parse_answer("0.075", schema)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (
            {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "uniqueItems at its top, to which",
        ),
        ({"properties": {"a": {"pattern": "^(?=a).$"}}}, "pattern '^(?=a).$' at properties.a, to which"),
        ({"pattern": "^(a)\\1$"}, "pattern"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties at its top, to which"),
        ({"$defs": {"x": {"not": {"type": "null"}}}, "$ref": "#/$defs/x"}, "not at $defs.x"),
        ({"if": {"type": "null"}, "then": {}, "else": {}}, "if at its top, then at its top, else at its top"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf at its top, to which"),
        ({"type": "string", "maxlength": 3}, "maxlength at its top, which nobody knows"),
        ({"type": "string", "format": "path"}, "format path at its top, which nobody knows"),
    ],
)
def test_what_the_grammar_does_not_know_is_told_and_left_to_be_looked_at(schema: dict[str, Any], told: str) -> None:
    text = json.dumps(schema)
    assert told in " ".join(tell_schema(text))
    assert list(find_schema_problems(text)) == []
    assert hold_schema(text).problem == ""


def test_what_binds_nothing_or_is_held_as_it_is_is_not_told() -> None:
    for schema in (
        {"type": "array", "items": {"type": "string"}, "uniqueItems": False},
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
        {"type": "string", "x-order": 3, "examples": ["a"], "title": "b", "default": "c"},
    ):
        assert tell_schema(json.dumps(schema)) == []


_KEYWORDS = sorted(name for name in _vocabulary() if not name.startswith("$"))


@pytest.mark.parametrize("keyword", _KEYWORDS)
def test_each_keyword_of_json_schema_is_held_or_told(keyword: str) -> None:
    """What llguidance says of it, whatever its version, is what is told."""
    values = ({}, [], True, 1, "a", ["a"], {"a": {}}, {"a": ["b"]}, [{}])
    valid = [v for v in values if not list(find_schema_problems(json.dumps({"title": "a", keyword: v})))]
    for value in valid:
        schema = json.dumps({"title": "a", keyword: value})
        refused = "Unimplemented" in str(validate(schema))
        assert refused == any(f"{keyword} at" in told for told in tell_schema(schema)) or keyword in _TOLD_ANYWAY


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('{"type": "text"}', "no JSON schema: type:"),
        ("{}", "is empty"),
        ("{", "no JSON:"),
        ('{"$ref": "#/$defs/y"}', "refers to '#/$defs/y'"),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "minimum (3) is greater than maximum (2)"),
        ('{"type": "object", "properties": {"id": {}, "ID": {}}}', "differ in case alone"),
        ('{"properties": {"a": {"$ref": "https://example.org/s.json"}}}', "refers to 'https://example.org/s.json'"),
    ],
)
def test_a_schema_s_mistakes_are_told(schema: str, told: str) -> None:
    assert told in " ".join(find_schema_problems(schema))


def test_a_good_schema_has_no_mistakes() -> None:
    assert list(find_schema_problems(json.dumps(SCHEMA))) == []
