"""Bodies in OpenAI's dialect, and what is read of its lines."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from tests.hosted_batches import hosted_spec
from udfs.errors import RowError
from udfs.hosted import openai
from udfs.hosted.asked import Chat, Document, Usage
from udfs.hosted.asking import Question, ask_about
from udfs.hosted.tasks import make_hosted
from udfs.tasks.text_generation import TextGenerationOptions


def _body(text: str = "Hello", **options: Any) -> dict[str, Any]:
    task = make_hosted(hosted_spec(**options))
    asked = task.ask(text)
    assert not isinstance(asked, RowError)
    return task.body(asked[0])


def test_a_prompt_is_a_chat_of_one_message() -> None:
    assert _body() == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 256,
        "temperature": 0.0,
    }


def test_options_go_by_the_provider_s_names() -> None:
    told = _body(max_new_tokens=9, temperature=0.7, top_p=0.9, seed=3, stop=("x",), n=2, logprobs=True, top_logprobs=2,
                 presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"5": 1.0})  # fmt: skip
    del told["messages"], told["model"]
    assert told == {
        "max_completion_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["x"], "n": 2,
        "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "logit_bias": {"5": 1.0},
    }  # fmt: skip


def test_a_server_of_one_s_own_is_asked_as_vllm_is() -> None:
    told = _body(engine="openai-compatible", temperature=1.0, top_k=5, min_tokens=2, max_new_tokens=9)
    assert told["max_tokens"] == 9
    assert (told["top_k"], told["min_tokens"]) == (5, 2)
    assert "max_completion_tokens" not in told


def test_what_a_job_lays_over_a_body_wins_and_null_takes_a_key_out() -> None:
    over = {"temperature": None, "reasoning_effort": "low", "metadata": {"a": "b"}}
    told = _body(endpoint={"body": over})
    assert "temperature" not in told
    assert (told["reasoning_effort"], told["metadata"]) == ("low", {"a": "b"})


def test_what_is_laid_over_a_body_is_read_too_and_counts() -> None:
    told = "You are a clerk who knows all goods. " * 40
    tokens = []
    for body in (None, {"instructions": told}):
        spec = hosted_spec(endpoint={"body": body})
        question = ask_about("Hello", make_hosted(spec))
        assert isinstance(question, Question)
        tokens.append(question.requests[0].tokens)
    assert len(told) / 4 < tokens[1] - tokens[0] < len(told) / 3


def test_choices_are_an_enumeration_and_words_where_that_is_taken_out() -> None:
    told = _body(choices=("good", "bad"))
    schema = told["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["good", "bad"]
    assert told["response_format"]["json_schema"]["strict"] is True
    bare = _body(choices=("good", "bad"), endpoint={"body": {"response_format": None}})
    assert "response_format" not in bare
    assert bare["messages"][0]["content"].endswith("- good\n- bad")


def test_a_schema_is_told_strictly_where_it_can_be() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert _body(json_schema=json.dumps(schema))["response_format"]["json_schema"]["strict"] is True
    assert _body(response_format="json_object")["response_format"] == {"type": "json_object"}


def test_vectors_are_asked_for_as_bytes_of_openai_and_as_numbers_of_others() -> None:
    asked = {"task": "feature-extraction", "dimensions": 8, "prompt": "query: "}
    assert _body(**asked) == {
        "model": "gpt-test", "input": "query: Hello", "encoding_format": "base64", "dimensions": 8
    }  # fmt: skip
    assert _body(engine="openai-compatible", **asked)["encoding_format"] == "float"


_WAY = TextGenerationOptions()
_ASKED = Chat((("user", "x"),), _WAY)


def _answer(**message: Any) -> dict[str, Any]:
    ended = message.pop("finish_reason", "stop")
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi", **message}, "finish_reason": ended}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"choices": [choice], "usage": usage}


def test_an_answer_has_its_text_its_end_and_its_tokens() -> None:
    reply = openai.read_body(_answer(), _ASKED)
    assert (reply.answers[0].text, reply.answers[0].finish, reply.usage) == ("hi", 0, Usage(7, 2, 4))
    assert openai.read_body(_answer(finish_reason="length"), _ASKED).answers[0].finish == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [({"refusal": "no"}, "refused"), ({"content": "", "finish_reason": "content_filter"}, "content_filter")],
)
def test_a_refusal_costs_tokens_and_is_no_answer(message: dict[str, Any], code: str) -> None:
    reply = openai.read_body(_answer(**message), _ASKED)
    assert reply.error is not None
    assert (reply.error.code, reply.usage.input_tokens) == (code, 7)


@pytest.mark.parametrize(
    "body",
    [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": "x"}, {"choices": [3]},
     {"choices": None, "usage": {"prompt_tokens": "many"}}],
)  # fmt: skip
def test_a_body_of_another_shape_is_no_reply(body: dict[str, Any]) -> None:
    reply = openai.read_body(body, _ASKED)
    assert reply.error is not None
    assert reply.error.code == "no_reply"


def test_thoughts_are_told_apart_where_the_server_does_or_the_text_shows_them() -> None:
    way = TextGenerationOptions(reasoning="keep")
    asked = Chat((("user", "x"),), way)
    apart = openai.read_body(_answer(reasoning_content="hm"), asked).answers[0]
    within = openai.read_body(_answer(content="<think>hm</think>\nhi"), asked).answers[0]
    assert (apart.text, apart.thoughts) == (within.text, within.thoughts) == ("hi", "hm")


def test_a_vector_comes_as_bytes_or_as_numbers() -> None:
    numbers = np.array([0.5, -0.25], dtype="<f4")
    encoded = base64.b64encode(numbers.tobytes()).decode()
    for told in (encoded, [0.5, -0.25]):
        reply = openai.read_body({"data": [{"embedding": told}], "usage": {"prompt_tokens": 3}}, Document("x"))
        assert reply.vector is not None
        assert reply.vector.tolist() == [0.5, -0.25]
    assert openai.read_body({"data": [{"embedding": "!"}]}, Document("x")).error is not None


def _failed(status: int, **error: Any) -> dict[str, Any]:
    return {"custom_id": "gm-1-x", "response": {"status_code": status, "body": {"error": error}}, "error": None}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (_failed(400, code="context_length_exceeded"), "input_too_long"),
        (_failed(400, message="This model's maximum context length is 8192 tokens."), "input_too_long"),
        (_failed(400, code="content_filter"), "content_filter"),
        (_failed(400, code="unsupported_value", param="temperature"), "bad_request"),
        (_failed(404, code="model_not_found"), "bad_request"),
        (_failed(429, code="rate_limit_exceeded"), "provider_error"),
        (_failed(500), "provider_error"),
        (_failed(0), "provider_error"),
        ({"custom_id": "a", "response": None, "error": {"code": "batch_expired"}}, "expired"),
        ({"custom_id": "a", "response": None, "error": {"code": "batch_cancelled"}}, "canceled"),
        ({"custom_id": "a", "response": None, "error": {"code": "server_error"}}, "provider_error"),
        ({"custom_id": "a", "response": {"status_code": 200, "body": None}}, "provider_error"),
        ({"custom_id": "a"}, "no_reply"),
        ({"custom_id": "a", "response": [], "error": "x"}, "no_reply"),
    ],
)
def test_a_line_without_an_answer_says_why(line: dict[str, Any], code: str) -> None:
    _, outcome = openai.read_line(line)
    assert isinstance(outcome, RowError)
    assert outcome.code == code


def test_a_provider_s_own_words_may_quote_the_row_and_are_not_told() -> None:
    told = _failed(400, code="invalid_prompt", message="secret text", param="messages[0].content", type="x")
    _, outcome = openai.read_line(told)
    assert isinstance(outcome, RowError)
    assert "secret" not in outcome.message
    assert "invalid_prompt, x, messages[0].content, HTTP 400" in outcome.message
