"""Anthropic's requests: each has one line, in the shape that its client parses, its error nested as theirs are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message
from anthropic.types.messages import MessageBatchIndividualResponse

from tests.request_lines import MESSAGES, Answerer, answering, anthropic_line

TOOL = {"name": "brew", "input_schema": {"type": "object", "properties": {"cups": {"enum": [1]}}, "required": ["cups"]}}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answerer]:
    yield from answering(tmp_path_factory.mktemp("anthropic"))


def _result(answerer: Answerer, line: str) -> Any:
    """The result, as the official client reads it."""
    (row,) = answerer.rows([line], "anthropic-batch")
    assert " " not in row["line"].split('"message"')[0]  # compact
    return MessageBatchIndividualResponse.model_validate_json(row["line"], strict=True).result


def _message(answerer: Answerer, **params: Any) -> Message:
    result = _result(answerer, anthropic_line(**params))
    assert result.type == "succeeded", result
    message: Message = result.message
    return message


def test_a_message_is_whole(answerer: Answerer) -> None:
    found = _message(answerer, system="Be brief.")
    assert (found.stop_reason, found.stop_sequence, found.role) == ("max_tokens", None, "assistant")
    assert found.usage.output_tokens == 6
    assert found.content[0].type == "text"


def test_a_stop_sequence_is_told(answerer: Answerer) -> None:
    plain = _message(answerer, max_tokens=10).content[0]
    assert plain.type == "text"
    found = _message(answerer, max_tokens=10, stop_sequences=[plain.text[3]])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", plain.text[3])


def test_a_system_of_blocks_is_one_text(answerer: Answerer) -> None:
    blocks = [
        {"type": "text", "text": "Be "},
        {"type": "text", "text": "brief.", "cache_control": {"type": "ephemeral"}},
    ]
    both = [_message(answerer, system=system) for system in ("Be brief.", blocks)]
    assert both[0].content == both[1].content


def test_a_tool_is_used_where_one_is_asked_for(answerer: Answerer) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "brew"}):
        found = _message(answerer, tools=[TOOL], tool_choice=choice, max_tokens=80)
        (used,) = found.content
        assert (found.stop_reason, used.type) == ("tool_use", "tool_use")
        assert used.type == "tool_use"
        assert used.input == {"cups": 1}


def test_uses_and_results_of_tools_are_read(answerer: Answerer) -> None:
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "brew", "input": {"cups": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "done"}]},
    ]
    assert _message(answerer, messages=messages, tools=[TOOL]).content


REFUSED = [
    anthropic_line(model="nobody"),
    anthropic_line(max_tokens=None),
    anthropic_line(max_tokens=100_000),
    anthropic_line(stream=True),
    anthropic_line(typo=1),
    anthropic_line(temperature=1.5),
    anthropic_line(thinking={"type": "enabled", "budget_tokens": 1024}),
    anthropic_line(messages=[]),
    anthropic_line(messages=[{"role": "system", "content": "x"}]),
    anthropic_line(messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}]),
    anthropic_line(messages=[*MESSAGES, {"role": "assistant", "content": "ends with space "}]),
    anthropic_line(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    anthropic_line(custom_id="with space"),
    anthropic_line(custom_id="x" * 65),
    anthropic_line(custom_id=""),
    anthropic_line(custom_id=None),
    anthropic_line(custom_id=7),
    '{"custom_id": "a", "params": 1}',
    '{"custom_id": "a"}',
    "{",
    "7",
    json.dumps({**json.loads(anthropic_line()), "more": 1}),
]


def test_what_cannot_be_answered_is_an_error_of_its_line_alone(answerer: Answerer) -> None:
    rows = answerer.rows([line for told in REFUSED for line in (told, anthropic_line())], "anthropic-batch")
    for told, row in zip(REFUSED, rows[::2], strict=True):
        read = MessageBatchIndividualResponse.model_validate_json(row["line"], strict=True)
        assert read.result.type == "errored", told
        assert read.result.error.type == "error"
        assert read.result.error.error.message
    assert all(json.loads(row["line"])["result"]["type"] == "succeeded" for row in rows[1::2])


def test_past_the_deadline_a_request_expires(answerer: Answerer) -> None:
    (row,) = answerer.rows([anthropic_line()], "anthropic-batch", deadline=1.0)
    assert json.loads(row["line"]) == {"custom_id": "a", "result": {"type": "expired"}}
