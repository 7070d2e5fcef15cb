"""Lanes of decoders: what raises, runs out of memory or is abandoned takes nobody along."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.random_writers import END, make_prompts, make_writer, write_alone
from udfs.engine.assembly import Shell
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler
from udfs.engine.writing import WritingRunner
from udfs.generation.attention import CACHED, register_cached
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.picking import Picker
from udfs.tasks.registry import make_spec
from udfs.wire.faults import FAULTY, FINE, TOO_LARGE
from udfs.wire.items import Items

NEW = 12


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_writer("Llama")


@contextmanager
def _running(model: Any, *, spoil: Callable[[torch.Tensor], None] | None = None, lanes: int = 2) -> Iterator[Scheduler]:
    """A scheduler whose items are written; `spoil` sees the tokens of each step before the model does."""
    register_cached()
    model.set_attn_implementation(CACHED)
    spec = make_spec(task="text-generation", model="tiny", template="{{ x }}", max_new_tokens=NEW)
    picker = Picker(spec.options, ends=frozenset({END}), tokenizer=None)

    def run(*, input_ids: torch.Tensor, **options: Any) -> Any:
        if spoil is not None:
            spoil(input_ids[0])
        return model(input_ids=input_ids, **options)

    decoders = [
        Decoder(run, picker, Arena(512), device="cpu", max_new_tokens=NEW, max_sequences=4, step_tokens=32)
        for _ in range(lanes)
    ]
    budget = Budget(4, 1)
    scheduler = Scheduler(budget, pad_multiple=0, lanes=lanes, singly=True)
    WritingRunner(decoders, Shell("tiny"), scheduler, budget, threads=1)
    try:
        yield scheduler
    finally:
        scheduler.close()


def _items(prompts: list[np.ndarray]) -> Items:
    return Items(np.concatenate(prompts), np.concatenate([[0], np.cumsum([len(p) for p in prompts])]))


def _write(scheduler: Scheduler, prompts: list[np.ndarray], client: str = "a") -> Parcel:
    scheduler.put(Parcel(client, 0, _items(prompts)))
    return next(scheduler.answers(client))


def _alone(model: Any, prompts: list[np.ndarray]) -> list[list[int]]:
    model.set_attn_implementation("eager")
    return [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]


def _ids(parcel: Parcel) -> list[list[int] | None]:
    return [None if answer is None else answer.ids.tolist() for answer in parcel.written or []]


@pytest.mark.long
def test_clients_are_answered_side_by_side(llama: Any) -> None:
    prompts = make_prompts(18)
    wanted = _alone(llama, prompts)
    with _running(llama) as scheduler:
        found: dict[str, Parcel] = {}
        threads = [
            threading.Thread(target=lambda c=c: found.update({c: _write(scheduler, prompts[int(c) :: 3], c)}))
            for c in "012"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(_ids(found[c]) == wanted[int(c) :: 3] for c in "012")


def test_a_prompt_that_raises_fails_alone(llama: Any) -> None:
    prompts = make_prompts(9)
    prompts[4] = np.array([2, 2, 2], dtype=np.int32)  # no prompt and no answer has a 2 otherwise
    wanted = _alone(llama, prompts)
    assert all(2 not in ids for ids in wanted)

    def spoil(ids: torch.Tensor) -> None:
        if (ids == 2).any():
            raise ValueError("poison")

    with _running(llama, spoil=spoil) as scheduler:
        parcel = _write(scheduler, prompts)
    assert parcel.faults.tolist() == [FAULTY if i == 4 else FINE for i in range(9)]
    assert _ids(parcel) == [None if i == 4 else ids for i, ids in enumerate(wanted)]


def test_memory_that_runs_out_makes_fewer_at_once(llama: Any) -> None:
    prompts = make_prompts(9)

    def spoil(ids: torch.Tensor) -> None:
        if len(ids) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    prompts = [*(prompt[:15] for prompt in prompts), np.full(32, 9, dtype=np.int32)]
    wanted = _alone(llama, prompts)
    with _running(llama, spoil=spoil, lanes=1) as scheduler:
        parcel = _write(scheduler, prompts)
    assert parcel.faults.tolist() == [FINE] * 10
    assert _ids(parcel) == wanted


def test_a_prompt_without_room_in_the_cache_fails_alone(llama: Any) -> None:
    prompts = [*make_prompts(3), np.full(501, 9, dtype=np.int32)]
    with _running(llama) as scheduler:
        parcel = _write(scheduler, prompts)
    assert parcel.faults.tolist() == [FINE, FINE, FINE, TOO_LARGE]


def test_what_a_client_abandons_is_not_written_on(llama: Any) -> None:
    prompts = make_prompts(6)
    begun, go_on = threading.Event(), threading.Event()

    def spoil(_: torch.Tensor) -> None:
        begun.set()
        go_on.wait(30)

    wanted = _alone(llama, prompts[:2])
    with _running(llama, spoil=spoil, lanes=1) as scheduler:
        scheduler.put(Parcel("gone", 0, _items(prompts)))
        assert begun.wait(30)
        scheduler.drop("gone")
        go_on.set()
        assert _ids(_write(scheduler, prompts[:2], "stays")) == wanted
        assert scheduler.idle()


def _wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


class _FullDecoder:
    """Has room for one sequence, which it never ends."""

    step_tokens = 32
    wrote = read = 0

    def __init__(self) -> None:
        self.sequences: list[Any] = []
        self.refused = 0

    def __len__(self) -> int:
        return len(self.sequences)

    def bound(self, *, sequences: int, step_tokens: int) -> None:
        """It stays as it is."""

    def is_hungry(self) -> bool:
        return True

    def fits(self, tokens: int, told: str | None = None) -> bool:
        return True

    def add(self, owner: Any, prompt: np.ndarray, told: str | None = None) -> bool:
        if self.sequences:
            self.refused += 1
            return False
        self.sequences.append(SimpleNamespace(owner=owner, prompt=prompt))
        return True

    def step(self) -> list[Any]:
        time.sleep(0.001)
        return []

    def drop(self, sequences: list[Any]) -> None:
        self.sequences = [one for one in self.sequences if one not in sequences]


def test_an_item_that_waits_for_room_goes_with_its_client() -> None:
    decoder: Any = _FullDecoder()
    budget = Budget(4, 1)
    scheduler = Scheduler(budget, pad_multiple=0, lanes=1, singly=True)
    WritingRunner([decoder], Shell("full"), scheduler, budget, threads=1)
    try:
        for client in ("stays", "gone"):
            scheduler.put(Parcel(client, 0, _items(make_prompts(1))))
        _wait_until(lambda: decoder.refused > 0)
        assert scheduler.look()[1].running == 2
        scheduler.drop("gone")
        _wait_until(lambda: scheduler.look()[1].running == 1)
    finally:
        scheduler.close()
