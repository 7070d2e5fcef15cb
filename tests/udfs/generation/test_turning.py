"""Models whose position frequencies are others in long texts, some of which grow long while they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.decoders import NEW, put_to_write, write_all
from tests.models import rope_of
from tests.random_writers import make_prompts, make_writer, write_alone
from tests.recorded import Recorder, plain_kernel

ABOVE = 48
KINDS = ["Phi3", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("Phimoe", "Qwen2", "Llama"))]


def _make(kind: str) -> Any:
    more = {"original_max_position_embeddings": ABOVE} if kind == "Phi3" else {}
    return make_writer(kind, rope_parameters=rope_of(kind, "longrope", above=ABOVE), **more)


def _prompts() -> list[np.ndarray]:
    """Short ones, long ones, and those with which the frequencies change at once, soon, or never; all begin alike."""
    begin, *_ = make_prompts(1, shared=100)
    rest = make_prompts(1, seed=1, shared=100)[0]
    lengths = (5, 30, 47, 48, 49, 90, 24, 40, 70, 48)
    return [np.concatenate([begin[: n - 3], rest[i * 3 : i * 3 + 3]]) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("at_once", "step_tokens"), [(1, 1000), (5, 7), (10, 1000)])
def test_a_text_that_grows_long_is_written_as_it_is_alone(kind: str, at_once: int, step_tokens: int) -> None:
    prompts, alone = _prompts(), [write_alone(_make(kind), prompt, max_new_tokens=NEW) for prompt in _prompts()]
    found = write_all(put_to_write(_make(kind), at_once=at_once, step_tokens=step_tokens), prompts)
    assert [sequence.ids for sequence in found] == alone
    if at_once > 1:
        assert any(sequence.cached_tokens for sequence in found)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_are_recorded_write_a_text_that_grows_long_too(kind: str) -> None:
    prompts, record = _prompts(), Recorder()
    alone = [write_alone(_make(kind), prompt, max_new_tokens=NEW) for prompt in prompts]
    with plain_kernel():
        found = write_all(put_to_write(_make(kind), at_once=6, step_tokens=30, recorded=True, record=record), prompts)
    assert [sequence.ids for sequence in found] == alone
    assert record.replayed
