"""Bodies in Anthropic's dialect, and what is read of its lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hosted_batches import hosted_spec
from udfs.errors import RowError
from udfs.hosted import anthropic
from udfs.hosted.asked import Chat, Usage
from udfs.hosted.tasks import make_hosted
from udfs.tasks.text_generation import TextGenerationOptions

_SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})


def _bodies(row: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    from udfs.tasks.text_generation import make_asker

    spec = hosted_spec(engine="anthropic-batch", **options)
    task, ask = make_hosted(spec), make_asker(spec)
    assert ask is not None
    text, _ = ask(row)
    asked = task.ask(text or "")
    assert not isinstance(asked, RowError)
    return [task.body(each) for each in asked]


def test_system_messages_stand_before_the_chat() -> None:
    told = _bodies({"t": "tea"}, messages=(("system", "Be brief."), ("user", "Say {{ t }}")), stop=("x",))
    assert told == [
        {
            "model": "gpt-test",
            "max_tokens": 256,
            "messages": [{"role": "user", "content": "Say tea"}],
            "system": "Be brief.",
            "stop_sequences": ["x"],
        }
    ]


def test_variants_are_requests_of_their_own() -> None:
    told = _bodies({"t": "tea"}, template="{{ t }} in {{ variant }}", variants=("de", "fr"), variant_name="variant")
    assert [body["messages"][0]["content"] for body in told] == ["tea in de", "tea in fr"]


def test_a_schema_is_an_output_format_and_words_where_that_is_taken_out() -> None:
    (told,) = _bodies({"t": "x"}, template="{{ t }}", json_schema=_SCHEMA)
    assert told["output_config"]["format"]["type"] == "json_schema"
    assert told["output_config"]["format"]["schema"]["additionalProperties"] is False
    for over in ({"output_config": None}, {"output_config": {"format": None, "effort": "low"}}):
        (bare,) = _bodies({"t": "x"}, template="{{ t }}", json_schema=_SCHEMA, endpoint={"body": over})
        assert "format" not in bare.get("output_config", {})
        assert _SCHEMA in bare["messages"][0]["content"]


def test_what_a_job_lays_over_keeps_the_format() -> None:
    over = {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}
    (told,) = _bodies({"t": "x"}, template="{{ t }}", json_schema=_SCHEMA, endpoint={"body": over})
    assert {*told["output_config"]} == {"effort", "format"}
    assert told["thinking"] == {"type": "disabled"}


_ASKED = Chat((("user", "x"),), TextGenerationOptions(reasoning="keep"))


def _message(**more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 5,
        "output_tokens": 2,
        "cache_read_input_tokens": 10,
        "cache_creation_input_tokens": 3,
    }
    return {"content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "usage": usage, **more}


def test_tokens_of_the_cache_are_among_those_that_were_read() -> None:
    assert anthropic.read_body(_message(), _ASKED).usage == Usage(18, 2, 10)


def test_thoughts_are_told_apart() -> None:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    (told,) = anthropic.read_body(_message(content=content), _ASKED).answers
    assert (told.text, told.thoughts) == ("hi", "hm")


@pytest.mark.parametrize(
    ("more", "finish"),
    [
        ({"stop_reason": "max_tokens"}, 1),
        ({"stop_reason": "model_context_window_exceeded"}, 1),
        ({"stop_reason": "stop_sequence", "stop_sequence": "x"}, 0),
        ({"stop_reason": "stop_sequence", "stop_sequence": "x", "content": []}, 3),
    ],
)
def test_how_an_answer_ended_is_told(more: dict[str, Any], finish: int) -> None:
    (told,) = anthropic.read_body(_message(**more), _ASKED).answers
    assert told.finish == finish


def _errored(kind: str, message: str = "") -> dict[str, Any]:
    inner = {"type": "error", "error": {"type": kind, "message": message}}
    return {"custom_id": "a", "result": {"type": "errored", "error": inner}}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (_errored("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum"), "input_too_long"),
        (_errored("invalid_request_error", "messages: at least one message is required"), "bad_request"),
        (_errored("request_too_large"), "input_too_long"),
        (_errored("api_error"), "provider_error"),
        (_errored("overloaded_error"), "provider_error"),
        ({"custom_id": "a", "result": {"type": "expired"}}, "expired"),
        ({"custom_id": "a", "result": {"type": "canceled"}}, "canceled"),
        ({"custom_id": "a", "result": {"type": "succeeded"}}, "no_reply"),
        ({"custom_id": "a", "result": None}, "no_reply"),
    ],
)
def test_a_line_without_an_answer_says_why(line: dict[str, Any], code: str) -> None:
    _, outcome = anthropic.read_line(line)
    assert isinstance(outcome, RowError)
    assert outcome.code == code


def test_a_refusal_is_no_answer() -> None:
    reply = anthropic.read_body(_message(stop_reason="refusal"), _ASKED)
    assert reply.error is not None
    assert (reply.error.code, reply.usage.output_tokens) == ("refused", 2)
