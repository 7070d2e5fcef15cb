"""A model's own repetition penalty and what items ask for, of all rows at once: as of each by itself."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from tests.decoders import NEW, make_options, put_to_write, write_all
from tests.random_writers import make_prompts, make_writer, write_alone
from tests.recorded import Recorder, plain_kernel
from udfs.generation.penalties import follow_wishes, list_seen, penalize
from udfs.generation.sequences import RECENT, Sequence, Way, note_ids, tell

SIZE, PENALTY = 12, 1.4
_TOKENS = st.lists(
    st.integers(0, SIZE + 3), max_size=2 * RECENT
)  # a prompt may have tokens that the model never writes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_TOKENS, _TOKENS, st.integers(0, RECENT), _TOKENS), min_size=1, max_size=5), st.booleans())
def test_each_row_is_penalized_for_its_own_text(
    texts: list[tuple[list[int], list[int], int, list[int]]], drafted: bool
) -> None:
    sequences, drafts, rows = [], [], []
    for prompt, written, _, draft in texts:
        sequence = Sequence(None, np.array([0, *prompt], dtype=np.int32), Way(make_options()))
        sequence.ids = [token % SIZE for token in written]
        sequences.append(sequence)
        drafts.append([token % SIZE for token in draft[:4]] if drafted else [])
        rows += [[0, *prompt, *sequence.ids, *drafts[-1][:count]] for count in range(len(drafts[-1]) + 1)]
    told = tell(sequences)
    for place, (_, _, fresh, _) in enumerate(texts):  # some of what is written is not among the ids yet
        count, ids = min(fresh, len(sequences[place].ids)), sequences[place].ids
        told["fresh"][place], told["recent"][place, :count] = count, ids[len(ids) - count :]
        del ids[len(ids) - count :]
    logits = torch.randn(len(rows), SIZE, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([_penalize_alone(line, row) for line, row in zip(logits, rows, strict=True)])
    for _ in range(2):
        found = logits.clone()
        penalize(found, list_seen(sequences, told, size=SIZE, drafts=drafts if drafted else None), PENALTY)
        assert torch.equal(found, wanted)
        note_ids(told, list(range(len(sequences))), sequences)


def _penalize_alone(line: torch.Tensor, row: list[int]) -> torch.Tensor:
    known = torch.tensor([[token for token in row if token < SIZE]])
    return RepetitionPenaltyLogitsProcessor(penalty=PENALTY)(known, line[None].clone())


def test_wishes_of_a_row_change_no_other() -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"logit_bias": {"3": 2.0, "5": -100.0, "40": 1.0}},  # of a tokenizer that has more than the model writes
        {"presence_penalty": 1.5, "frequency_penalty": 0.25},
        {"min_tokens": 9},
        {"min_tokens": 2, "frequency_penalty": -0.5, "logit_bias": {"1": 0.5}},
    ]
    sequences = [Sequence(None, np.zeros(3, np.int32), Way(make_options(**wish))) for wish in wishes]
    for sequence in sequences:
        sequence.ids = [1, 4, 4, 4]
    logits, ends = torch.randn(len(wishes), SIZE), np.array([7, 99])
    found = logits.clone()
    follow_wishes(found, sequences, ends)
    wanted = logits.clone()
    wanted[1, 3] += 2.0
    wanted[1, 5] -= 100.0
    wanted[2, 1] -= 1.5 + 0.25
    wanted[2, 4] -= 1.5 + 0.25 * 3
    wanted[3, 7] = -torch.inf
    wanted[4, 1] += 0.5 + 0.5
    wanted[4, 4] += 0.5 * 3
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("told", [None, {"stop": ["<none>"]}])
def test_answers_of_a_model_with_a_penalty_are_those_of_one_prompt_at_a_time(recorded: bool, told: Any) -> None:
    model, prompts = make_writer("Llama"), make_prompts(10, seed=2)
    alone = [write_alone(model, prompt, max_new_tokens=NEW, repetition_penalty=PENALTY) for prompt in prompts]
    assert alone != [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]
    record = Recorder()
    with plain_kernel() if recorded else nullcontext():
        decoder = put_to_write(
            model, step_tokens=40, recorded=recorded, record=record, penalty=PENALTY, tokenizer=_Any()
        )
        add = decoder.add
        if told:
            decoder.add = lambda owner, prompt: add(owner, prompt, json.dumps(told))  # type: ignore[method-assign, misc, assignment]
        found = write_all(decoder, prompts)
    assert [sequence.ids for sequence in found] == alone
    assert bool(record.replayed) == recorded


class _Any:
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return ""


def test_logprobs_are_those_of_the_model_without_its_penalty() -> None:
    model, exact, prompts = make_writer("Llama"), make_writer("Llama"), make_prompts(3, seed=2)
    options = make_options(logprobs=True, top_logprobs=1)
    for sequence in write_all(put_to_write(model, options=options, penalty=PENALTY), prompts):
        row = torch.from_numpy(np.concatenate([sequence.prompt, sequence.ids]).astype(np.int64))
        with torch.inference_mode():
            shares = exact(input_ids=row[None]).logits[0, len(sequence.prompt) - 1 : -1].log_softmax(-1)
        wanted = shares.gather(1, row[len(sequence.prompt) :, None])[:, 0]
        found = [value for value, _, _ in sequence.logprobs][: len(sequence.ids)]
        assert np.allclose(found, wanted.numpy(), atol=1e-4)
