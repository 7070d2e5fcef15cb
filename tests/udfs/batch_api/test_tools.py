"""What a model has written, parted into what it says and what it calls."""

from __future__ import annotations

import pytest

from udfs.batch_api.tools import Call, Way, part_calls

_WAY = Way("<tool_call>", "<tool_call>\n")


def test_a_call_is_taken_out_of_a_text() -> None:
    told = 'Now. <tool_call>{"name": "brew", "arguments": {"cups": 1}}</tool_call>'
    assert part_calls(told, _WAY, ["brew"]) == ("Now.", [Call("brew", '{"cups": 1}')])


@pytest.mark.parametrize(
    "arguments", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' * 300 + "1" + "}" * 300, "[" * 5000, "1"]
)
def test_what_no_other_program_reads_as_arguments_is_no_call(arguments: str) -> None:
    told = f'<tool_call>{{"name": "brew", "arguments": {arguments}}}</tool_call>'
    assert part_calls(told, _WAY, ["brew"]) == (told, [])
