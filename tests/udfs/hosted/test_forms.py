"""Schemas as providers are told them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from udfs.hosted.forms import fit_anthropic, fit_openai, instruct, read_form, schema_of_choices
from udfs.tasks.writing_options import Form
from udfs.text.schema_parts import close_schema


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


def test_openai_holds_a_model_to_a_schema_whose_keys_are_all_required() -> None:
    fitted = fit_openai(json.dumps(_schema(a={"type": "string"}, n={"type": "integer", "minimum": 2})))
    assert fitted.strict
    assert fitted.schema == {
        **_schema(a={"type": "string"}, n={"type": "integer", "minimum": 2}),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {**_schema(a={"type": "string"}), "required": []},
        {**_schema(a={"type": "string"}), "additionalProperties": True},
        {"type": "array", "items": {"type": "string"}},
        _schema(a={"oneOf": [{"type": "string"}, {"type": "null"}]}),
        _schema(a={"type": "object"}),
        {"type": "object", "anyOf": [_schema(a={"type": "string"})]},
    ],
)
def test_openai_takes_other_schemas_loosely_and_as_they_are(schema: dict[str, Any]) -> None:
    fitted = fit_openai(json.dumps(schema))
    assert not fitted.strict
    assert fitted.schema == json.loads(close_schema(json.dumps(schema)))


def test_bounds_that_a_provider_does_not_know_are_told_in_descriptions() -> None:
    told = json.dumps(_schema(a={"type": "string", "maxLength": 5, "description": "short"}, n={"minimum": 1}))
    openai, anthropic = fit_openai(told), fit_anthropic(told)
    assert openai.schema is not None
    assert anthropic.schema is not None
    assert openai.schema["properties"] == {
        "a": {"type": "string", "description": "short (maxLength: 5)"},
        "n": {"minimum": 1},
    }
    assert anthropic.schema["properties"]["n"] == {"description": "(minimum: 1)"}
    assert openai.lost == ("maxLength at properties.a",)
    assert anthropic.lost == ("maxLength at properties.a", "minimum at properties.n")


def test_anthropic_is_told_in_the_prompt_of_objects_with_any_keys() -> None:
    assert fit_anthropic(json.dumps({"type": "object", "additionalProperties": True})).schema is None
    assert fit_anthropic(json.dumps(_schema(a={"type": "object"}))).schema is None


def test_a_key_that_has_a_keyword_s_name_is_a_key() -> None:
    fitted = fit_openai(json.dumps(_schema(default={"type": "string"}, maxLength={"type": "integer"})))
    assert fitted.strict
    assert fitted.schema is not None
    assert [*fitted.schema["properties"]] == ["default", "maxLength"]
    assert fitted.lost == ()


def test_the_keys_of_a_schema_stay_in_their_order() -> None:
    names = ["reason", "label", "aside", "z", "b"]
    fitted = fit_openai(json.dumps(_schema(**{name: {"type": "string"} for name in names})))
    assert fitted.schema is not None
    assert [*fitted.schema["properties"]] == names


def test_more_choices_than_a_provider_takes_are_told_in_the_prompt() -> None:
    assert schema_of_choices(["a", "b"]) is not None
    assert schema_of_choices([str(n) for n in range(1001)]) is None
    assert schema_of_choices([f"{n:0100}" for n in range(300)]) is None
    assert instruct(Form(choices=("a", "b"))).endswith("- a\n- b")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"answer": "b"}', "b"),
        ("b", "b"),
        (" b\n", "b"),
        ('"b"', "b"),
        ('```json\n{"answer": "b"}\n```', "b"),
        ('{"answer": 3}', '{"answer": 3}'),
        ("c", "c"),
    ],
)
def test_a_choice_is_read_out_of_what_is_around_it(text: str, read: str) -> None:
    assert read_form(text, Form(choices=("a", "b"))) == read


def test_a_fence_around_json_is_taken_off() -> None:
    assert read_form('```json\n{"a": 1}\n```', Form('{"type": "object"}')) == '{"a": 1}'
    assert read_form("```\ntext\n```", Form()) == "```\ntext\n```"
