"""Which token comes next, by logits that are given; no model writes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.decoders import make_options
from tests.writers import CHARACTERS, make_decoder
from udfs.errors import SpecError
from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence
from udfs.text.schemas import parse_answer
from udfs.wire.written import STOP

END, OPENING, CLOSING = 9, 7, 8
YES, NO = [1, 2], [3]


def _write(prompt: list[int], wanted: list[int], *, choices: list[list[int]] | None = None) -> Sequence:
    picker = Picker(
        make_options(choices=("any",), reasoning="keep"),
        ends=frozenset({END}),
        tokenizer=None,
        choices=choices or [YES, NO],
        marks=(OPENING, CLOSING),
    )
    sequence = picker.begin(None, np.array(prompt, dtype=np.int32))
    for token in [*wanted, *[END] * 9]:
        logits = torch.zeros(1, 10)
        logits[0, token] = 1
        picker.pick(logits, [sequence])
        if sequence.finish is not None:
            break
    return sequence


@pytest.mark.parametrize(
    ("prompt", "wanted", "written"),
    [
        ([0], [OPENING, 5, 6, CLOSING, 3], [OPENING, 5, 6, CLOSING, 3]),  # it thinks, then chooses
        ([0, OPENING], [5, CLOSING, 1], [5, CLOSING, 1, 2]),  # the prompt has it think
        ([0, OPENING], [5, END, END, CLOSING, 3], [5, 0, 0, CLOSING, 3]),  # a thought has no end but its mark
        ([0, OPENING, CLOSING, 0], [5, 5], [1, 2]),  # the prompt has it not think
        ([0], [1, OPENING], [1, 2]),  # it may not begin to think in the midst
    ],
)
def test_choices_bind_what_comes_after_the_thoughts(prompt: list[int], wanted: list[int], written: list[int]) -> None:
    sequence = _write(prompt, wanted)
    assert (sequence.ids, sequence.finish) == (written, STOP)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["b"]},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"], "$defs": {"x": {"const": "é"}}},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2},
    {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, {"type": "null"}]},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 1},
    {"oneOf": [{"const": 1}, {"const": 2}]},
    {"enum": [f"value {number}" for number in range(5000)]},
]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: " ".join(schema))
def test_whatever_a_model_wants_its_answer_matches_the_schema(
    schema: dict[str, Any], ahead: bool, tmp_path: Path
) -> None:
    tokenizer, text = AutoTokenizer.from_pretrained(make_decoder(tmp_path)), json.dumps(schema)
    end = CHARACTERS - 1
    options = make_options(json_schema=text, max_new_tokens=200)
    picker, rng = Picker(options, ends=frozenset({end}), tokenizer=tokenizer), torch.Generator().manual_seed(0)
    sequences = [picker.begin(None, np.zeros(1, dtype=np.int32)) for _ in range(5)]
    while left := [sequence for sequence in sequences if sequence.finish is None]:
        logits = torch.rand(len(left), CHARACTERS, generator=rng)
        logits[:, tokenizer.convert_tokens_to_ids(["}", '"', ","])] += 0.5
        if ahead:
            picker.prepare(left)
        picker.pick(logits, left)
    for sequence in sequences:
        if sequence.finish == STOP:
            parse_answer(tokenizer.decode(sequence.ids), text)
    assert any(sequence.finish == STOP for sequence in sequences)


def test_a_schema_whose_grammar_does_not_work_is_told_as_the_model_is_loaded(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_decoder(tmp_path))
    schema = '{"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}'
    with pytest.raises(SpecError, match="grammar cannot be used"):
        Picker(make_options(json_schema=schema), ends=frozenset({END}), tokenizer=tokenizer)
