from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoders import NEW, make_options, put_to_write, write_all
from tests.random_writers import FAMILIES, make_prompts, make_writer, write_alone
from tests.recorded import Recorder, plain_kernel
from udfs.generation.cache import Arena
from udfs.wire.written import BROKEN, LENGTH, STOP


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("at_once", "step_tokens"), [(1, 1000), (5, 7)])
def test_answers_are_those_of_one_prompt_at_a_time(kind: str, at_once: int, step_tokens: int) -> None:
    model, prompts = make_writer(kind), make_prompts(8)
    alone = [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]
    found = write_all(put_to_write(model, at_once=at_once, step_tokens=step_tokens), prompts)
    assert [sequence.ids for sequence in found] == alone
    assert [s.finish for s in found] == [LENGTH if len(ids) == NEW else STOP for ids in alone]


@pytest.fixture(scope="module")
def llama() -> tuple[Any, list[np.ndarray], list[list[int]]]:
    model, prompts = make_writer("Llama"), make_prompts(12, seed=1)
    return model, prompts, [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]


LONG = 150


@pytest.fixture(scope="module")
def long_answers() -> tuple[Any, list[np.ndarray], list[list[int]]]:
    model, prompts = make_writer("Llama", eos_token_id=None), make_prompts(9, seed=4)
    return model, prompts, [write_alone(model, prompt, max_new_tokens=LONG) for prompt in prompts]


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_no_mix_of_arrivals_and_cancellations_changes_an_answer(llama: Any, data: st.DataObject) -> None:
    model, prompts, alone = llama
    recorded = data.draw(st.booleans())
    decoder = put_to_write(
        model,
        at_once=data.draw(st.integers(1, 6)),
        step_tokens=data.draw(st.integers(1, 80)),
        recorded=recorded,
        record=Recorder(),
    )
    waiting = data.draw(st.permutations(range(len(prompts))))
    over: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    while waiting or len(decoder):
        for _ in range(data.draw(st.integers(0, 3)) or not len(decoder)):
            if waiting and len(decoder) < decoder.max_sequences and decoder.add(waiting[0], prompts[waiting[0]]):
                waiting = waiting[1:]
        if len(decoder) and data.draw(st.integers(0, 9)) == 0:
            victim = data.draw(st.sampled_from(decoder.sequences))
            cancelled.add(victim.owner)
            decoder.drop([victim])
        with plain_kernel() if recorded else contextlib.nullcontext():
            over |= {sequence.owner: sequence.ids for sequence in (decoder.step() if len(decoder) else ())}
    assert over.keys() | cancelled == set(range(len(prompts)))
    assert all(ids == alone[number] for number, ids in over.items())


@pytest.mark.parametrize("step_tokens", [24, 1000])
def test_prompts_that_begin_alike_are_computed_once(llama: Any, step_tokens: int) -> None:
    model, prompts, alone = llama
    found = write_all(put_to_write(model, at_once=8, step_tokens=step_tokens), prompts)
    assert [sequence.ids for sequence in found] == alone
    shared = [sequence.cached_tokens >= 20 for sequence in found]
    assert shared.count(False) == 1  # those of one step wait for the first


def test_what_has_ended_is_of_use_as_long_as_there_is_room(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, cached = put_to_write(model, at_once=1, step_tokens=1000, tokens=512), []
    decoder._arena.slab_slots = 1
    for number, prompt in enumerate(prompts):
        (found,) = write_all(decoder, [prompt])
        assert found.ids == alone[number]
        cached.append(found.cached_tokens)
    assert cached[0] == 0
    assert all(count >= 20 for count in cached[1:])
    decoder.add(0, prompts[0])
    decoder.drop(decoder.sequences)
    decoder._release(len(decoder._kept))
    assert decoder._arena.take(512) is not None


def test_prompts_wait_once_for_one_that_ends_with_its_first_token(llama: Any) -> None:
    model, prompts, _ = llama
    decoder = put_to_write(model, options=make_options(max_new_tokens=1), at_once=8, step_tokens=1000)
    assert all(decoder.add(number, prompt) for number, prompt in enumerate(prompts[:8]))
    steps = 0
    while len(decoder):
        decoder.step()
        steps += 1
    assert steps == 2


def test_what_is_drawn_depends_on_prompt_and_seed_alone(llama: Any) -> None:
    model, prompts, greedy = llama
    asked = make_options(temperature=0.8, top_p=0.9, top_k=40, seed=4)
    together = [s.ids for s in write_all(put_to_write(model, options=asked), prompts)]
    alone = [s.ids for s in write_all(put_to_write(model, options=asked, at_once=1), prompts)]
    other = [s.ids for s in write_all(put_to_write(model, options=make_options(temperature=0.8, seed=5)), prompts)]
    assert together == alone
    assert together != other
    assert together != greedy


def test_drawing_among_one_token_is_greedy(llama: Any) -> None:
    model, prompts, greedy = llama
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        drawn = make_options(temperature=1.0, **options)
        assert [s.ids for s in write_all(put_to_write(model, options=drawn), prompts)] == greedy


class _Letters:
    """Decodes each token as a word of its own."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in ids)


def test_a_stop_string_ends_an_answer(llama: Any) -> None:
    model, prompts, greedy = llama
    word = f"<{greedy[0][6]}>"
    asked = make_options(stop=(word,))
    found = write_all(put_to_write(model, options=asked, tokenizer=_Letters()), prompts)
    for sequence, ids in zip(found, greedy, strict=True):
        places = [place for place, token in enumerate(ids) if f"<{token}>" == word]
        assert sequence.ids == (ids[: places[0] + 1] if places else ids)
    assert found[0].finish == STOP


def test_an_answer_that_is_no_number_fails_alone_and_leaves_nothing_behind(llama: Any) -> None:
    model, prompts, alone = llama
    poison = np.array([7, 7, 7, 7, 7], dtype=np.int32)
    decoder = put_to_write(model, at_once=4)
    run = decoder._model

    def spoil(*, input_ids: torch.Tensor, **options: Any) -> Any:
        output = run(input_ids=input_ids, **options)
        ends = options["logits_to_keep"]
        output.logits[0, (input_ids[0][ends] == 7).nonzero()[:, 0]] = torch.nan
        return output

    decoder._model = spoil
    found = write_all(decoder, [prompts[0], poison, *prompts[1:]])
    assert found[1].finish == BROKEN
    assert [s.ids for s in (found[0], *found[2:]) if 7 not in (*s.prompt[-1:], *s.ids)] == [
        ids for prompt, ids in zip(prompts, alone, strict=True) if 7 not in (*prompt[-1:], *ids)
    ]


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_answers_that_outgrow_a_full_cache_are_read_again_once_and_stay_the_same(
    long_answers: Any, data: st.DataObject
) -> None:
    model, prompts, alone = long_answers
    decoder = put_to_write(
        model,
        options=make_options(max_new_tokens=LONG),
        at_once=data.draw(st.integers(2, 6)),
        step_tokens=data.draw(st.integers(6, 200)),
        tokens=data.draw(st.sampled_from([320, 448, 640, 1024])),
        drafts=data.draw(st.booleans()),
    )
    evicted, evict = list[int](), decoder._evict

    def note(active: Any) -> None:
        evicted.append(active.sequence.owner)
        evict(active)

    decoder._evict = note  # type: ignore[method-assign]
    over = dict[int, list[int]]()
    waiting = data.draw(st.permutations(range(len(prompts))))
    cancelled = set[int]()
    while waiting or len(decoder):
        while waiting and decoder.is_hungry() and decoder.add(waiting[0], prompts[waiting[0]]):
            waiting = waiting[1:]
        if len(decoder) > 1 and data.draw(st.integers(0, 30)) == 0:
            victim = data.draw(st.sampled_from(decoder.sequences))
            cancelled.add(victim.owner)
            decoder.drop([victim])
        over |= {sequence.owner: sequence.ids for sequence in decoder.step()}
    assert over.keys() | cancelled == set(range(len(prompts)))
    assert all(ids == alone[number] for number, ids in over.items())
    assert len(set(evicted)) == len(evicted)


def test_more_answers_fit_than_if_each_had_room_for_the_longest(long_answers: Any) -> None:
    model, prompts, alone = long_answers
    asked = make_options(max_new_tokens=LONG)
    decoder = put_to_write(model, options=asked, at_once=9, step_tokens=900, tokens=640)
    decoder._arena.slab_slots, began = 1, 0
    while decoder.is_hungry() and decoder.add(began, prompts[began]):
        began += 1
    assert began > 640 // (LONG + 64)
    over = dict[int, list[int]]()
    while len(decoder):
        over |= {sequence.owner: sequence.ids for sequence in decoder.step()}
    assert over == {number: alone[number] for number in range(began)}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=60))
def test_slots_never_overlap(steps: list[tuple[int, bool]]) -> None:
    arena, held = Arena(2048), []
    for tokens, give in steps:
        if give and held:
            arena.give_back(held.pop(tokens % len(held)))
        elif (slot := arena.take(tokens)) is not None:
            assert slot.slab.capacity >= tokens
            held.append(slot)
        spans = sorted((slot.start, slot.start + slot.slab.capacity) for slot in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert all(start >= 0 and end <= arena.tokens for start, end in spans)
    for slot in held:
        arena.give_back(slot)
    assert arena.fits(2048)
    assert arena.take(2048) is not None
    assert not arena.fits(2049)


@pytest.mark.parametrize("fault", ["raised", "abandoned", "ended"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_slot_that_is_given_back_holds_nothing_that_a_mask_lets_through(
    llama: Any, fault: str, poison: float
) -> None:
    model, prompts, alone = llama
    decoder = put_to_write(model, at_once=4, step_tokens=30)
    run, spoils = decoder._model, True

    def spoil(*, step: Any, **options: Any) -> Any:
        output = run(step=step, **options)
        if spoils:
            for states in (*step.arena.keys.values(), *step.arena.values.values()):
                states[step.places] = poison
            if fault == "raised":
                raise RuntimeError("CUDA out of memory")
        return output

    decoder._model = spoil
    for number in range(4):
        decoder.add(number, prompts[number])
    if fault == "raised":
        with pytest.raises(RuntimeError):
            decoder.step()
    else:
        decoder.step()
    if fault == "ended":  # as if all that it had written were numbers
        for sequence in decoder.sequences:
            sequence.finish = LENGTH
    decoder.drop(decoder.sequences)
    spoils = False
    arena = decoder._arena
    assert all(bool(states.isfinite().all()) for states in (*arena.keys.values(), *arena.values.values()))
    assert [s.ids for s in write_all(decoder, prompts)] == alone
