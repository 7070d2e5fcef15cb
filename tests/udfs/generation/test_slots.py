"""Slots that grow, move, are given up and taken again: the model here writes by all that the cache holds of a text.

So a token that is missing, stale or another text's changes the answer. It has no weights and takes no time.
"""

from __future__ import annotations

import bisect
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoders import make_options
from tests.recorded import Recorder
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.drafting import Drafter
from udfs.generation.graphs import Graphs
from udfs.generation.picking import Picker
from udfs.wire.written import LENGTH, STOP

END, WORDS, MOST = 0, 7, 200
_KIND = torch.zeros(0, 1, 1)


def _next_token(text: np.ndarray) -> int:
    """By each token and its place; some end an answer."""
    told = int((text * (np.arange(len(text)) % 13 + 1)).sum())
    return END if told % 41 == 0 else 1 + told % (WORDS - 1)


def _remember(*, input_ids: torch.Tensor, step: Any, logits_to_keep: torch.Tensor | None = None, **_: Any) -> Any:
    keys, values = step.arena.layer(0, _KIND)
    keys[step.places, 0, 0] = input_ids[0].float()
    values[step.places, 0, 0] = input_ids[0].float()
    rows = torch.arange(input_ids.shape[1]) if logits_to_keep is None else logits_to_keep
    logits, ends = torch.zeros(1, len(rows), WORDS), step.spans.news[1:].tolist()
    for number, row in enumerate(rows.tolist()):
        which = bisect.bisect_right(ends, row)
        begin, length = int(step.spans.starts[which]), int(step.spans.lengths[which]) - ends[which] + row + 1
        text = keys[begin : begin + length, 0, 0].numpy().astype(np.int64)
        logits[0, number, _next_token(text)] = 1
    return SimpleNamespace(logits=logits)


def _write_alone(prompt: np.ndarray) -> tuple[list[int], int]:
    text = prompt.astype(np.int64)
    while len(text) < len(prompt) + MOST:
        token = _next_token(text)
        if token == END:
            return text[len(prompt) :].tolist(), STOP
        text = np.append(text, token)
    return text[len(prompt) :].tolist(), LENGTH


def _make_decoder(data: st.DataObject) -> Decoder:
    arena = Arena(data.draw(st.sampled_from([384, 640, 1024, 4096])), slab_slots=data.draw(st.sampled_from([1, 8])))
    with torch.inference_mode():
        arena.layer(0, _KIND)
    recorded = data.draw(st.booleans())
    return Decoder(
        _remember,
        Picker(make_options(max_new_tokens=MOST), ends=frozenset({END}), tokenizer=None),
        arena,
        device="cpu",
        max_new_tokens=MOST,
        max_sequences=data.draw(st.integers(1, 12)),
        step_tokens=data.draw(st.integers(12, 300)),
        graphs=Graphs(_remember, arena, longest=1024, device="cpu", record=Recorder()) if recorded else None,
        drafter=Drafter(read_rows=1e6) if data.draw(st.booleans()) else None,
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_mix_of_arrivals_cancellations_and_room_changes_what_the_cache_holds(data: st.DataObject) -> None:
    decoder, rng = _make_decoder(data), np.random.default_rng(data.draw(st.integers(0, 99)))
    begin = rng.integers(1, WORDS, 60)
    prompts = [
        np.concatenate([begin[: rng.integers(1, 61)], rng.integers(1, WORDS, rng.integers(1, 60))]).astype(np.int32)
        for _ in range(data.draw(st.integers(1, 16)))
    ]
    evicted, evict = list[int](), decoder._evict

    def note(active: Any) -> None:
        evicted.append(active.sequence.owner)
        evict(active)

    decoder._evict = note  # type: ignore[method-assign]
    over, gone, waiting = dict[int, Any](), set[int](), list(range(len(prompts)))
    while waiting or len(decoder):
        while waiting and decoder.is_hungry() and decoder.add(waiting[0], prompts[waiting[0]]):
            waiting.pop(0)
        if decoder.sequences and rng.integers(50) == 0:
            victim = decoder.sequences[rng.integers(len(decoder.sequences))]
            gone.add(victim.owner)
            decoder.drop([victim])
        over |= {sequence.owner: sequence for sequence in decoder.step()}
        assert decoder._unread == sum(active.unread for active in decoder._reading)
    assert over.keys() | gone == set(range(len(prompts)))
    for number, sequence in over.items():
        assert (sequence.ids, sequence.finish) == _write_alone(prompts[number])
    assert len(set(evicted)) == len(evicted)
    decoder._release(len(decoder._kept))
    assert decoder._arena.used == 0
    assert decoder._graphs or not any(
        states.any() for states in (*decoder._arena.keys.values(), *decoder._arena.values.values())
    )
    assert not decoder._sharing.ready._holders
    assert not decoder._sharing.coming._holders
