from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.random_writers import ENCODER_DECODERS, END, make_prompts, make_writer, write_alone
from udfs.generation.encoder_decoder import EncoderDecoder
from udfs.generation.picking import Picker
from udfs.tasks.registry import make_spec
from udfs.wire.items import Items

NEW = 20


def _writer(model: Any, **options: Any) -> EncoderDecoder:
    spec = make_spec(task="translation", model="tiny", target_lang="de", max_new_tokens=NEW, **options)
    picker = Picker(spec.options, ends=frozenset({END}), tokenizer=None)
    return EncoderDecoder(
        model, picker, name="tiny", device="cpu", max_new_tokens=NEW, num_beams=options.get("num_beams", 1)
    )


def _items(prompts: list[np.ndarray], begun: list[list[int]] | None = None) -> Items:
    begun = begun or [[] for _ in prompts]
    parts = [np.concatenate([p, b]).astype(np.int32) for p, b in zip(prompts, begun, strict=True)]
    types = [np.repeat([0, 1], [len(p), len(b)]) for p, b in zip(prompts, begun, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return Items(np.concatenate(parts), offsets, np.concatenate(types).astype(np.int32) if any(begun) else None)


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_one_text_at_a_time(kind: str, beams: int) -> None:
    model, prompts = make_writer(kind), make_prompts(9, shared=0)
    if kind == "Bart":
        model.generation_config.no_repeat_ngram_size, model.generation_config.min_length = 3, 6
    if kind == "Marian":
        model.generation_config.bad_words_ids = [[0]]
    alone = [write_alone(model, prompt, max_new_tokens=NEW, num_beams=beams) for prompt in prompts]
    found, widths = _writer(model, num_beams=beams).run(_items(prompts), np.arange(len(prompts)))
    assert [written.ids.tolist() for written in found] == alone
    longest = max(map(len, prompts))
    assert widths.tolist() == [longest + len(ids) for ids in alone]


def test_an_answer_begins_with_the_tokens_that_its_item_gives() -> None:
    model, prompts = make_writer("M2M100"), make_prompts(4, shared=0)
    begun = [[11], [12], [], [11]]
    alone = [
        write_alone(model, p, max_new_tokens=NEW + len(b), **({"forced_bos_token_id": b[0]} if b else {}))[len(b) :]
        for p, b in zip(prompts, begun, strict=True)
    ]
    found, _ = _writer(model).run(_items(prompts, begun), np.array([2, 0, 3, 1]))
    assert [written.ids.tolist() for written in found] == [alone[i] for i in (2, 0, 3, 1)]
