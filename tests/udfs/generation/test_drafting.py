"""Drafts change no answer, and are made where they pay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.decoders import NEW, make_options, put_to_write, write_all
from tests.fetch_smollm2 import TARGET
from tests.random_writers import FAMILIES, make_prompts, make_writer, write_alone
from tests.writers import CHARACTERS, make_decoder
from udfs.generation.drafting import LOOKED, MOST_DRAFTED, Draft, Drafter
from udfs.generation.grammar import Grammar
from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence


@pytest.fixture(scope="module")
def llama() -> tuple[Any, list[np.ndarray]]:
    """One that repeats itself, and prompts that have what it writes."""
    model, prompts = make_writer("Llama"), make_prompts(6, seed=2)
    answers = [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]
    more = [np.concatenate([p, a, p]).astype(np.int32) for p, a in zip(prompts, answers, strict=True)]
    return model, prompts + more


def _count_steps(decoder: Any, prompts: list[np.ndarray]) -> tuple[list[Any], int]:
    steps, step = [0], decoder.step

    def counted() -> Any:
        steps[0] += 1
        return step()

    decoder.step = counted
    return write_all(decoder, prompts), steps[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_answers_with_drafts_are_those_of_generate_in_fewer_steps(kind: str) -> None:
    model, prompts = make_writer(kind), make_prompts(4)
    alone = [write_alone(model, prompt, max_new_tokens=60) for prompt in prompts]
    asked = make_options(max_new_tokens=60)
    found, fewer = _count_steps(put_to_write(model, options=asked, step_tokens=200), prompts)
    _, steps = _count_steps(put_to_write(model, options=asked, step_tokens=200, drafts=False), prompts)
    assert [sequence.ids for sequence in found] == alone
    assert fewer < steps or kind == "Qwen3"  # which writes nothing twice here


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5, "seed": 3},
    {"temperature": 1.5, "top_p": 0.8, "top_k": 20},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"min_tokens": 20, "max_new_tokens": 30},
    {"logit_bias": {"7": 20.0, "9": 19.0}},
    {"logprobs": True, "top_logprobs": 2},
    {"stop": ["<7>", "<11><"]},
    {"stop": ["<9>"], "temperature": 0.3, "min_tokens": 4},
]


class _Letters:
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in ids)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_rows_of_all_options_are_answered_as_without_drafts(llama: Any, data: st.DataObject) -> None:
    model, prompts = llama
    told = [None if not o else json.dumps(o) for o in data.draw(st.lists(st.sampled_from(OPTIONS), min_size=6))]
    drawn = data.draw(st.lists(st.sampled_from(range(len(prompts))), min_size=len(told), max_size=len(told)))
    at_once, step_tokens = data.draw(st.integers(1, 6)), data.draw(st.integers(6, 90))
    found = []
    for drafts in (True, False):
        decoder = put_to_write(model, tokenizer=_Letters(), at_once=at_once, step_tokens=step_tokens, drafts=drafts)
        over: dict[int, Sequence] = {}
        waiting = list(range(len(told)))
        while waiting or len(decoder):
            while (
                waiting
                and decoder.is_hungry()
                and decoder.add(waiting[0], prompts[drawn[waiting[0]]], told[waiting[0]])
            ):
                waiting.pop(0)
            over |= {sequence.owner: sequence for sequence in decoder.step()}
        found.append([(over[i].ids, over[i].finish, len(over[i].logprobs)) for i in range(len(told))])
    assert found[0] == found[1]


def test_what_was_read_after_a_wrong_draft_and_was_no_number_does_not_come_through(llama: Any) -> None:
    model, prompts = llama
    alone = [sequence.ids for sequence in write_all(put_to_write(model, at_once=4), prompts)]
    decoder = put_to_write(model, at_once=4)
    run = decoder._model

    def spoil(*, step: Any, logits_to_keep: Any, **options: Any) -> Any:
        """As if each last draft that is wrong gave no numbers."""
        output = run(step=step, logits_to_keep=logits_to_keep, **options)
        ids, counts = options["input_ids"][0], step.pieces.counts
        for end, count, past in zip(step.pieces.ends, counts, step.pieces.pasts, strict=True):
            row = end - 1
            if count > 1 and past > 30 and row > 0 and row in logits_to_keep:
                place = int((logits_to_keep == row).nonzero()[0])
                if logits_to_keep[place - 1] == row - 1 and int(output.logits[0, place - 1].argmax()) != int(ids[row]):
                    output.logits[0, place] = torch.nan
                    for states in (*step.arena.keys.values(), *step.arena.values.values()):
                        states[step.places[row]] = torch.nan
        return output

    decoder._model = spoil
    assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone


def _look(drafter: Drafter, draft: Draft, told: np.ndarray) -> int:
    """Where its last two tokens were before; of any number of tokens that were written since."""
    text = len(draft.sequence.prompt) + len(draft.sequence.ids)
    told["past"], told["last"] = text - 1, draft.sequence.ids[-1] if draft.sequence.ids else draft.sequence.prompt[-1]
    return drafter.look([draft], told)[0]


def _tell(draft: Draft) -> np.ndarray:
    return np.array([(draft.first, len(draft.sequence.prompt), False, 0, 0)], dtype=TOLD)


TOLD = np.dtype([*LOOKED.descr, ("last", np.int64), ("past", np.int64)])


def _begin(prompt: list[int]) -> Draft:
    picker = Picker(make_options(), ends=frozenset(), tokenizer=None)
    return Draft(picker.begin(None, np.array(prompt, dtype=np.int32)))


def _find(draft: Draft, told: np.ndarray, most: int, *written: int) -> tuple[str, list[int]]:
    draft.sequence.ids.extend(written)
    return draft.find(_look(Drafter(read_rows=1), draft, told), most)


def test_drafts_follow_the_last_tokens_as_they_were_last() -> None:
    draft = _begin([1, 2, 3, 4, 9, 2, 3, 5, 2])
    told = _tell(draft)
    assert _find(draft, told, 3, 3) == ("short", [5, 2, 3])
    assert _find(draft, told, 2, 4, 1, 2, 3) == ("short", [4, 1])
    assert _find(draft, told, MOST_DRAFTED, 4) == ("long", [1, 2, 3, 4] * 2)
    assert _find(draft, told, 3, 8) == ("", [])


@pytest.mark.parametrize("prompt", [[5], [5, 6], [5, 6, 5]])
def test_a_prompt_may_be_too_short_to_look_anything_up(prompt: list[int]) -> None:
    draft = _begin(prompt)
    told = _tell(draft)
    assert _find(draft, told, 2, 7) == ("", [])
    assert _find(draft, told, 1, 5, 6, 5, 6)[1] == [5]


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    draft = _begin([7, 8, 7, 8, 7])
    assert _find(draft, _tell(draft), 6, 8) == ("long", [7, 8, 7, 8, 7, 8])


def test_drafts_give_way_where_they_are_wrong_and_grow_where_they_are_right() -> None:
    drafter, lengths = Drafter(read_rows=10), {True: list[int](), False: list[int]()}
    drafts = {True: _begin([1, 2, 3]), False: _begin([1, 2, 3])}
    told = {is_right: _tell(draft) for is_right, draft in drafts.items()}
    for step in range(30):
        for is_right, draft in drafts.items():
            draft.sequence.ids.extend([1, 2, 3])
            if (place := _look(drafter, draft, told[is_right])) < 0:
                continue
            lengths[is_right].append(len(drafter.draft(draft, place, most=9, price=0.5)))
            told[is_right]["guessed"] = True
            draft.sequence.ids.extend(draft.guess if is_right else [20 + step])
    assert lengths[True][-1] > lengths[True][0]
    assert lengths[False][-1] == 0


def test_a_draft_costs_what_it_keeps_from_others() -> None:
    drafter = Drafter(read_rows=10, past_share=0.001)
    assert drafter.price(1, 0) < 0.1 < drafter.price(8, 0) < 0.9 < drafter.price(1000, 0) < 1
    assert drafter.price(64, 64 * 1000) < drafter.price(64, 64 * 10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_decoder(tmp_path_factory.mktemp("letters")))


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["tea", "soil"]}, "count": {"type": "integer"}, "name": {"type": "string"}},
    "required": ["kind", "count", "name"],
}


@pytest.mark.parametrize("words", ["letters", "SmolLM2"])
def test_a_grammar_lets_single_tokens_through_as_its_mask_does(tokenizer: Any, words: str) -> None:
    if words == "SmolLM2":  # several of its tokens spell what is forced
        if not TARGET.is_dir():
            pytest.skip("python -m tests.fetch_smollm2 brings the model")
        tokenizer = AutoTokenizer.from_pretrained(TARGET)
    end, size = (CHARACTERS - 1, CHARACTERS) if words == "letters" else (2, 49152)
    grammar = Grammar(json.dumps(SCHEMA), tokenizer, frozenset({end}))
    matcher, rng = grammar.begin(), np.random.default_rng(0)
    for _ in range(40):
        held = grammar.mask(torch.zeros(1, size), [matcher])[0].isfinite().numpy()
        looked_at = np.unique(np.concatenate([np.flatnonzero(held)[:50], rng.integers(0, size, 300)]))
        assert [matcher.allows(token) for token in looked_at.tolist()] == held[looked_at].tolist()
        forced = matcher.forced(9)
        assert not forced or np.flatnonzero(held).tolist() == forced[:1]
        assert matcher.count_allowed(forced) == len(forced)
        token = int(rng.choice(np.flatnonzero(held)))
        if token == end:
            break
        matcher.accept(token)
        if matcher.is_over():
            break


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("form", [{"json_schema": json.dumps(SCHEMA)}, {"choices": ("tea and soil", "tea and lamps")}])
def test_what_a_grammar_forces_is_written_in_fewer_steps(
    tokenizer: Any, tmp_path: Path, form: dict[str, Any], temperature: float
) -> None:
    model = make_writer("Llama", vocab_size=CHARACTERS)
    options = make_options(**form, temperature=temperature, max_new_tokens=60)
    choices = [tokenizer.encode(text) for text in form.get("choices", ())]
    found = []
    for drafts in (True, False):
        decoder = put_to_write(model, options=options, tokenizer=tokenizer, drafts=drafts, step_tokens=200)
        decoder._picker = Picker(options, ends=frozenset({CHARACTERS - 1}), tokenizer=tokenizer, choices=choices)
        sequences, steps = _count_steps(decoder, make_prompts(4))
        found.append(([sequence.ids for sequence in sequences], steps))
    assert found[0][0] == found[1][0]
    assert found[0][1] < found[1][1]


def test_the_end_token_and_the_longest_answer_end_a_draft(llama: Any) -> None:
    model, prompts = llama
    for most in (1, 2, 3, 5):
        asked = make_options(max_new_tokens=most)
        found, plain = (
            write_all(put_to_write(model, options=asked, drafts=drafts), prompts) for drafts in (True, False)
        )
        assert [(s.ids, s.finish) for s in found] == [(s.ids, s.finish) for s in plain]
