"""The next step is launched before the tokens of the last are looked at: no answer is another for it.

On a GPU all recorded steps go by here (`test_graphs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoders import NEW, put_to_write, write_all
from tests.random_writers import make_prompts, make_writer, write_alone
from tests.recorded import Recorder, plain_kernel
from udfs.generation.decoding import Decoder
from udfs.wire.written import BROKEN


class _Letters:
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in ids)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, list[np.ndarray], list[list[int]]]:
    model, prompts = make_writer("Llama"), make_prompts(10, seed=1)
    return model, prompts, [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]


@pytest.fixture(autouse=True)
def _kernel() -> Iterator[None]:
    with plain_kernel():
        yield


def _put_to_write(model: Any, **more: Any) -> tuple[Decoder, list[int]]:
    """A decoder, and the sequences of each step that it launches ahead."""
    decoder = put_to_write(model, recorded=True, record=Recorder(), tokenizer=_Letters(), **more)
    assert decoder._graphs is not None
    run_after, ahead = decoder._graphs.run_after, list[int]()

    def note(tokens: torch.Tensor, *where: np.ndarray) -> Any:
        found = run_after(tokens, *where)
        ahead.extend([len(tokens)] if found is not None else [])
        return found

    decoder._graphs.run_after = note  # type: ignore[method-assign]
    return decoder, ahead


def test_nearly_all_steps_that_only_write_are_launched_ahead(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, ahead = _put_to_write(model, at_once=4, step_tokens=500)
    found = write_all(decoder, prompts[:4])
    assert [sequence.ids for sequence in found] == alone[:4]
    assert len(ahead) >= max(map(len, alone[:4])) - 5  # but the first, and those of which there is no recording yet


ROWS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"max_new_tokens": 1},
    {"max_new_tokens": 5},
    {"max_new_tokens": 40},
    {"temperature": 0.7, "seed": 3},
    {"stop": ["<7>", "<11>"]},
    {"frequency_penalty": 0.5},
    {"logprobs": True, "top_logprobs": 2},
]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_no_mix_of_rows_arrivals_and_cancellations_is_answered_otherwise(llama: Any, data: st.DataObject) -> None:
    model, prompts, _ = llama
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    told = [None if not row else json.dumps(row) for row in rng.choice(ROWS, len(prompts))]  # type: ignore[arg-type]
    at_once, step_tokens = data.draw(st.integers(1, 6)), data.draw(st.integers(6, 200))
    tokens, penalty = data.draw(st.sampled_from([192, 384, 4096])), data.draw(st.sampled_from([1.0, 1.4]))
    decoder, _ = _put_to_write(model, at_once=at_once, step_tokens=step_tokens, tokens=tokens, penalty=penalty)
    waiting, cancelled = list(range(len(prompts))), set[int]()
    found = dict[int, Any]()
    while waiting or len(decoder):
        while waiting and decoder.is_hungry() and rng.integers(5):
            if not decoder.add(waiting[0], prompts[waiting[0]], told[waiting[0]]):
                break
            waiting.pop(0)
        if len(decoder) and rng.integers(12) == 0:
            gone = [sequence for sequence in decoder.sequences if rng.integers(2)]
            cancelled |= {sequence.owner for sequence in gone}
            decoder.drop(gone)
        if len(decoder):
            found |= {sequence.owner: sequence for sequence in decoder.step()}
    plain = put_to_write(model, tokenizer=_Letters(), drafts=False, penalty=penalty)
    for owner in range(len(prompts)):
        if owner in cancelled:
            continue
        plain.add(owner, prompts[owner], told[owner])
        over = list[Any]()
        while len(plain):
            over += plain.step()
        assert (found[owner].ids, found[owner].finish) == (over[0].ids, over[0].finish)


def test_an_answer_that_is_no_number_fails_alone(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, ahead = _put_to_write(model, at_once=4, step_tokens=500)
    assert decoder._graphs is not None
    run, poisoned = decoder._graphs._model, alone[1][6]

    def spoil(*, input_ids: torch.Tensor, **options: Any) -> Any:
        output = run(input_ids=input_ids, **options)
        output.logits[0, input_ids[0] == poisoned] = torch.nan
        return output

    decoder._graphs._model = spoil
    found = write_all(decoder, prompts[:4])
    assert ahead
    assert found[1].finish == BROKEN
    assert found[1].ids == alone[1][: alone[1].index(poisoned) + 1]
    for sequence, ids in zip(found, alone, strict=False):
        assert sequence.ids == (ids if poisoned not in ids else ids[: ids.index(poisoned) + 1])


def test_what_is_launched_ahead_for_sequences_that_are_dropped_is_nobodys(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, _ = _put_to_write(model, at_once=4, step_tokens=500, tokens=512)
    for number in range(4):
        decoder.add(number, prompts[number])
    while decoder._ahead is None:
        decoder.step()
    decoder.drop(decoder.sequences)
    assert decoder._ahead is not None
    assert [sequence.ids for sequence in write_all(decoder, prompts[4:])] == alone[4:]
    decoder.add(0, prompts[0])
    while decoder._ahead is None:
        decoder.step()
    decoder.drop(decoder.sequences)
    decoder._forget_graphs()
    assert decoder._ahead is None
    assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone


def test_memory_that_runs_out_as_a_step_is_launched_ahead_costs_no_row(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, ahead = _put_to_write(model, at_once=4, step_tokens=500)
    assert decoder._graphs is not None
    run_after = decoder._graphs.run_after

    def fail(*args: Any) -> Any:
        if run_after(*args) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    decoder._graphs.run_after = fail  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        write_all(decoder, prompts[:4])
    assert ahead
    written = decoder.sequences
    decoder.drop(written)
    decoder.give_way(written)
    decoder._graphs.run_after = run_after  # type: ignore[method-assign]
    assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone
