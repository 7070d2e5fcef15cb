"""OpenAI's lines: each has one line, in the shape that its client parses, and an error of its own where it has one."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.request_lines import MESSAGES, Answerer, answering, chat_line, openai_line

TYPES: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/responses": Response,
}
_CALL = {"id": "1", "type": "function", "function": {"name": "brew", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answerer]:
    yield from answering(tmp_path_factory.mktemp("openai"))


def _body(answerer: Answerer, body: dict[str, Any], url: str = "/v1/chat/completions") -> Any:
    """The body of a response, as the official client reads it."""
    (line,) = answerer.openai(openai_line(body, url=url))
    assert line["error"] is None
    assert line["response"]["status_code"] == 200, line
    return TYPES[url].model_validate_json(json.dumps(line["response"]["body"]), strict=True)


def _chat(answerer: Answerer, **body: Any) -> ChatCompletion:
    told = {"model": "writer", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, **body}
    found: ChatCompletion = _body(answerer, told)
    return found


def test_a_chat_is_a_whole_completion(answerer: Answerer) -> None:
    found = _chat(answerer)
    (choice,) = found.choices
    assert (choice.finish_reason, choice.message.role, found.model) == ("length", "assistant", "writer")
    assert found.usage is not None
    assert found.usage.completion_tokens == 6
    assert found.usage.total_tokens == found.usage.prompt_tokens + 6


def test_several_choices_have_their_logprobs(answerer: Answerer) -> None:
    found = _chat(answerer, n=3, temperature=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in found.choices}) > 1
    for choice in found.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 6
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        told = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content)
        assert told.decode("utf-8", "replace") == choice.message.content


def test_an_answer_is_held_to_a_schema_and_what_is_cut_is_no_error(answerer: Answerer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    held = {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}
    whole, cut = _chat(answerer, response_format=held, max_tokens=40), _chat(answerer, response_format=held)
    assert json.loads(whole.choices[0].message.content or "")["a"] in ("x", "y")
    assert (whole.choices[0].finish_reason, cut.choices[0].finish_reason) == ("stop", "length")


def test_an_answer_goes_on_where_the_assistant_has_begun(answerer: Answerer) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "The"}]
    whole = _chat(answerer, messages=[*MESSAGES]).usage
    found = _chat(answerer, messages=begun).usage
    assert whole is not None
    assert found is not None
    assert found.prompt_tokens == whole.prompt_tokens + len("The")


def test_keys_are_written_in_the_order_of_the_schema(answerer: Answerer) -> None:
    facts = {"why": {"enum": ["x"]}, "answer": {"enum": [1, 2]}}
    schema = {"type": "object", "properties": facts, "required": [*facts], "additionalProperties": False}
    held = {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}
    found = _chat(answerer, response_format=held, max_tokens=60).choices[0].message.content
    assert list(json.loads(found or "")) == ["why", "answer"]


def test_arguments_of_a_call_that_are_no_object_stay_as_they_are(answerer: Answerer) -> None:
    for arguments in ("[" * 100_000, '{"a": NaN}', "none", ""):
        call = {**_CALL, "function": {"name": "brew", "arguments": arguments}}
        messages = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
        (line,) = answerer.openai(chat_line(messages=messages, tools=[TOOL]))
        assert line["response"]["status_code"] == (400 if len(arguments) > 500 else 200)


def test_a_required_call_is_one_and_its_arguments_match(answerer: Answerer) -> None:
    parameters = {"type": "object", "properties": {"cups": {"enum": [1, 2]}}, "required": ["cups"]}
    tool = {"type": "function", "function": {"name": "brew", "parameters": parameters}}
    found = _chat(answerer, tools=[tool], tool_choice="required", max_tokens=80, stop=["cups"])  # of what is said
    (call,) = found.choices[0].message.tool_calls or ()
    assert found.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "brew"
    assert json.loads(call.function.arguments)["cups"] in (1, 2)


def test_calls_and_their_results_are_read(answerer: Answerer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "brew", "arguments": '{"cups": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    assert _chat(answerer, messages=messages, tools=[TOOL]).choices


def test_a_completion_has_its_prompts_in_order(answerer: Answerer) -> None:
    body = {"model": "writer", "prompt": ["one", [5, 6, 7]], "max_tokens": 3, "temperature": 0, "logprobs": 2}
    found: Completion = _body(answerer, body, "/v1/completions")
    assert [choice.index for choice in found.choices] == [0, 1]
    for choice in found.choices:
        assert choice.logprobs is not None
        told = "".join(choice.logprobs.tokens or ())
        assert told.replace("<s>", "").replace("</s>", "") == choice.text
    alone: Completion = _body(answerer, {**body, "prompt": [5, 6, 7]}, "/v1/completions")
    assert alone.choices[0].text == found.choices[1].text
    echoed: Completion = _body(answerer, {**body, "prompt": "one", "echo": True, "logprobs": None}, "/v1/completions")
    assert echoed.choices[0].text == "one" + found.choices[0].text


def test_embeddings_come_as_numbers_or_base64_whole_or_cut(answerer: Answerer) -> None:
    body = {"model": "encoder", "input": ["red tea", "a dog"]}
    found: CreateEmbeddingResponse = _body(answerer, body, "/v1/embeddings")
    assert [one.index for one in found.data] == [0, 1]
    vectors = np.array([one.embedding for one in found.data], dtype=np.float32)
    (line,) = answerer.openai(openai_line({**body, "encoding_format": "base64"}, url="/v1/embeddings"))
    told = [base64.b64decode(one["embedding"]) for one in line["response"]["body"]["data"]]
    assert np.array_equal(np.stack([np.frombuffer(one, "<f4") for one in told]), vectors)
    cut: CreateEmbeddingResponse = _body(answerer, {**body, "dimensions": 8}, "/v1/embeddings")
    assert {len(one.embedding) for one in cut.data} == {8}


def test_token_ids_are_embedded_as_they_are(answerer: Answerer) -> None:
    by_text: CreateEmbeddingResponse = _body(answerer, {"model": "encoder", "input": "red tea"}, "/v1/embeddings")
    ids = [2, 4, 19, 3]  # [CLS] red tea [SEP]
    by_ids: CreateEmbeddingResponse = _body(answerer, {"model": "encoder", "input": ids}, "/v1/embeddings")
    assert by_ids.data[0].embedding == pytest.approx(by_text.data[0].embedding, abs=1e-5)


def test_a_response_is_whole(answerer: Answerer) -> None:
    body = {"model": "writer", "input": [{"role": "user", "content": [{"type": "input_text", "text": "tea?"}]}]}
    found: Response = _body(
        answerer, {**body, "instructions": "Be brief.", "max_output_tokens": 4, "temperature": 0}, "/v1/responses"
    )
    assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert found.usage is not None
    assert found.usage.output_tokens == 4
    assert found.output_text


REFUSED: list[tuple[str, int | None, str | None]] = [
    (chat_line(model="nobody"), 404, "model_not_found"),
    (chat_line(model=None), 400, "missing_required_parameter"),
    (chat_line(max_tokens=10_000), 400, "context_length_exceeded"),
    (chat_line(messages=[{"role": "user", "content": "x" * 1000}]), 400, "context_length_exceeded"),
    (chat_line(stream=True), 400, "unsupported_parameter"),
    (chat_line(typo=1), 400, "unknown_parameter"),
    (chat_line(reasoning_effort="low"), 400, "unknown_parameter"),
    (chat_line(temperature=3), 400, "invalid_value"),
    (chat_line(n="two"), 400, "invalid_type"),
    (chat_line(n=0), 400, "invalid_request"),
    (chat_line(top_logprobs=3), 400, "invalid_request"),
    (chat_line(logit_bias={"99999": 1}), 400, "invalid_request"),
    (chat_line(messages=[]), 400, "invalid_value"),
    (chat_line(messages=[{"role": "judge", "content": "x"}]), 400, "invalid_value"),
    (chat_line(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), 400, "invalid_value"),
    (chat_line(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), 400, "invalid_value"),
    (chat_line(messages=[{"role": "user", "content": "\ud800"}]), 400, "invalid_value"),
    (chat_line(tools=[{"type": "web_search"}]), 400, "invalid_value"),
    (chat_line(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}}), 400, "invalid_value"),
    (chat_line(response_format={"type": "json_schema"}), 400, "invalid_value"),
    (
        chat_line(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}),
        400,
        "invalid_request",
    ),
    (openai_line({"model": "encoder", "messages": MESSAGES}), 400, "unsupported_model"),
    (openai_line({"model": "writer", "input": "x"}, url="/v1/embeddings"), 400, "unsupported_model"),
    (openai_line({"model": "encoder", "input": ""}, url="/v1/embeddings"), 400, "invalid_value"),
    (openai_line({"model": "encoder", "input": [1, 99_999]}, url="/v1/embeddings"), 400, None),
    (openai_line({"model": "encoder", "input": "a " * 500}, url="/v1/embeddings"), 400, "context_length_exceeded"),
    (openai_line({"model": "encoder", "input": "a", "dimensions": 999}, url="/v1/embeddings"), 400, "invalid_value"),
    (openai_line({}, url="/v1/images/generations"), 404, "invalid_url"),
    (openai_line({}, url="https://elsewhere"), 404, "invalid_url"),
    (openai_line({"model": "writer", "messages": MESSAGES}, method="GET"), 400, "invalid_method"),
    (openai_line([1]), 400, "invalid_request"),
    (openai_line(json.dumps({"model": "writer", "messages": MESSAGES})), 400, "invalid_request"),
    (openai_line("[" * 100_000), 400, "invalid_request"),
    (openai_line({"model": "writer", "messages": MESSAGES}, more=1), 400, "unknown_parameter"),
    (chat_line(top_k=10**30, temperature=1), 400, "invalid_request"),
    (chat_line(stop=["\ud800"]), 400, None),
    (chat_line(user="\ud800"), 400, "invalid_value"),
    (chat_line(messages=[{"role": "user", "content": "x", "tool_calls": [_CALL]}]), 400, "unknown_parameter"),
    (chat_line(messages=[{"role": "user", "content": [{"type": "text", "text": "x", "typo": 1}]}]), 400, None),
    (chat_line(response_format={"type": "json_object", "typo": 1}), 400, "unknown_parameter"),
    (chat_line(tools=[{"type": "function", "function": {"name": "x", "typo": 1}}]), 400, "unknown_parameter"),
    (openai_line({"model": "writer", "input": "x", "metadata": {"a": 1}}, url="/v1/responses"), 400, "invalid_type"),
    (chat_line(metadata={"a": 0.5}).replace("0.5", "1e999"), None, "invalid_json_line"),
    (openai_line(None), 400, "invalid_request"),
    ("{", None, "invalid_json_line"),
    ("[1]", None, "invalid_json_line"),
    ("null", None, "invalid_json_line"),
    ('{"custom_id": NaN}', None, "invalid_json_line"),
    ("[" * 100_000, None, "invalid_json_line"),
    ('{"custom_id": "a", "body": ' + '{"a":' * 300 + "1" + "}" * 301, None, "invalid_json_line"),
    ('{"custom_id": "a", "custom_id": "b"}', None, "invalid_json_line"),
    (chat_line().replace('"temperature"', '"temperature": 1, "temperature"'), None, "invalid_json_line"),
    (openai_line({}, custom_id=None), None, "missing_required_parameter"),
    (openai_line({}, custom_id=7), None, "invalid_custom_id"),
    (openai_line({}, custom_id=["a"]), None, "invalid_custom_id"),
    (openai_line({}, custom_id="  "), None, "invalid_custom_id"),
]


def test_what_cannot_be_answered_is_an_error_of_its_line_alone(answerer: Answerer) -> None:
    lines = [line for told, _, _ in REFUSED for line in (told, chat_line())]
    found = answerer.openai(*lines)
    assert len(found) == len(lines)
    for (told, status, code), line in zip(REFUSED, found[::2], strict=True):
        assert line.keys() == {"id", "custom_id", "response", "error"}
        if status is None:
            assert line["response"] is None, told
            assert line["error"].keys() == {"code", "message"}
            assert line["error"]["code"] == code, told
        else:
            assert line["error"] is None, told
            body = line["response"]["body"]
            assert line["response"]["status_code"] == status, (told, body)
            assert body["error"].keys() == {"message", "type", "param", "code"}
            assert code is None or body["error"]["code"] == code, (told, body)
    assert all(line["response"]["status_code"] == 200 for line in found[1::2])


def test_a_line_of_sixty_megabytes_is_too_long_and_holds_nobody_up(answerer: Answerer) -> None:
    found = answerer.openai(chat_line(messages=[{"role": "user", "content": "word " * 12_000_000}]), chat_line())
    assert found[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert found[1]["response"]["status_code"] == 200


@pytest.mark.parametrize("custom_id", ["é\u2028\u2029\x85", "a\x00b", "🫖", "x" * 5000, "\ud800", "a\nb\r", " a "])
def test_an_id_comes_back_as_it_was(answerer: Answerer, custom_id: str) -> None:
    told = openai_line({"model": "encoder", "input": "tea"}, url="/v1/embeddings", custom_id=custom_id)
    (row,) = answerer.rows([told], "openai-batch")
    assert json.loads(row["line"])["custom_id"] == custom_id
    assert not set("\n\r\u2028\u2029\x85") & set(row["line"])
    assert row["error"] is None


@pytest.mark.parametrize("url", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
def test_a_url_may_have_its_version_or_not(answerer: Answerer, url: str) -> None:
    (line,) = answerer.openai(openai_line({"model": "encoder", "input": "tea"}, url=url))
    assert line["response"]["status_code"] == 200


def test_a_problem_of_the_file_is_an_error_of_the_line(answerer: Answerer) -> None:
    problems = ["duplicate_custom_id: it is there twice", None]
    rows = answerer.rows([chat_line(), chat_line()], "openai-batch", problems=problems)
    assert json.loads(rows[0]["line"])["error"] == {"code": "duplicate_custom_id", "message": "it is there twice"}
    assert [row["error"] and row["error"]["code"] for row in rows] == ["bad_request", None]


def test_past_the_deadline_a_line_expires_and_a_wrong_one_is_wrong(answerer: Answerer) -> None:
    rows = answerer.rows([chat_line(), chat_line(typo=1)], "openai-batch", deadline=1.0)
    late, wrong = (json.loads(row["line"]) for row in rows)
    assert (late["response"], late["error"]["code"], rows[0]["error"]["code"]) == (None, "batch_expired", "expired")
    assert wrong["response"]["status_code"] == 400


def test_lines_with_one_prompt_are_drawn_apart_and_again_alike(answerer: Answerer) -> None:
    lines = [
        openai_line({"model": "writer", "messages": MESSAGES, "max_tokens": 8, "temperature": 2}, custom_id=f"{number}")
        for number in range(6)
    ]
    first, again = (
        [line["response"]["body"]["choices"][0]["message"]["content"] for line in answerer.openai(*lines)] for _ in "ab"
    )
    assert len(set(first)) > 1
    assert first == again


def test_a_duplicate_costs_nothing_and_tells_its_whole_usage(answerer: Answerer) -> None:
    rows = answerer.rows([chat_line(), chat_line()], "openai-batch")
    bodies = [json.loads(row["line"])["response"]["body"] for row in rows]
    assert bodies[0]["usage"] == bodies[1]["usage"]
    assert [row["usage"]["output_tokens"] for row in rows] == [6, 0]


def test_requests_of_a_table_are_read_by_their_columns(answerer: Answerer) -> None:
    bodies = [{"model": "writer", "messages": MESSAGES, "max_tokens": 2, "temperature": None}] * 2
    window = pa.StructArray.from_arrays(
        [pa.array(bodies), pa.array(["a", None]), pa.array(["/v1/chat/completions"] * 2)], ["body", "custom_id", "url"]
    )
    good, bad = answerer.table(window, "openai-batch")
    assert json.loads(good["line"])["response"]["status_code"] == 200
    assert json.loads(bad["line"])["error"]["code"] == "missing_required_parameter"
    as_text = pa.StructArray.from_arrays(
        [pa.array([json.dumps(bodies[0])]), pa.array(["a"]), pa.array(["/v1/chat/completions"])],
        ["body", "custom_id", "url"],
    )
    (same,) = answerer.table(as_text, "openai-batch")
    assert json.loads(same["line"])["response"]["status_code"] == 200
