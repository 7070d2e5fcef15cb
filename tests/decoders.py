"""Decoders of tiny models, and prompts that are given to them as they have room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.random_writers import END
from udfs.generation.attention import CACHED, register_cached
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.drafting import Drafter
from udfs.generation.graphs import Call, Graphs
from udfs.generation.picking import Picker
from udfs.model.positions import find_turn, settle_positions
from udfs.tasks.text_generation import TextGenerationOptions

NEW = 24


def make_options(**options: Any) -> TextGenerationOptions:
    return TextGenerationOptions(**{"max_new_tokens": NEW, **options})


def put_to_write(
    model: Any,
    *,
    options: TextGenerationOptions | None = None,
    tokenizer: Any = None,
    at_once: int = 5,
    step_tokens: int = 24,
    device: str = "cpu",
    record: Callable[[Call], Call] | None = None,
    recorded: bool = False,
    drafts: bool = True,
    tokens: int = 4096,
    penalty: float = 1.0,
) -> Decoder:
    """A decoder of a model.

    Args:
        recorded: Its steps are recorded.
        record: By this; None makes CUDA graphs.
        tokens: Room of the cache.
        drafts: It makes them wherever there are some, since a row of a tiny model costs nothing.
        penalty: The model's own repetition penalty.
    """
    register_cached()
    model.set_attn_implementation(CACHED)
    settle_positions(model)
    options = options or make_options()
    picker = Picker(options, ends=frozenset({END}), tokenizer=tokenizer, penalty=penalty)
    arena = Arena(tokens)
    return Decoder(
        model,
        picker,
        arena,
        device=device,
        max_new_tokens=options.max_new_tokens,
        max_sequences=at_once,
        step_tokens=step_tokens,
        turn=find_turn(model),
        graphs=Graphs(model, arena, longest=128, device=device, record=record) if recorded else None,
        drafter=Drafter(read_rows=1e6) if drafts else None,
    )


def write_all(decoder: Decoder, prompts: list[np.ndarray]) -> list[Any]:
    """Each prompt as soon as there is room; the sequences in the order of the prompts."""
    over: dict[int, Any] = {}
    waiting = list(range(len(prompts)))
    while waiting or len(decoder):
        while waiting and decoder.is_hungry() and decoder.add(waiting[0], prompts[waiting[0]]):
            waiting.pop(0)
        over |= {sequence.owner: sequence for sequence in decoder.step()}
    return [over[i] for i in range(len(prompts))]
