"""Memory that others take and give back while a decoder writes: nothing fails that would have fitted a minute later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoders import put_to_write, write_all
from tests.random_writers import END, make_prompts, make_writer, save_writer, write_alone
from udfs.engine.assembly import Shell
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler
from udfs.engine.writing import WritingRunner
from udfs.generation import cache, loading, room
from udfs.generation.attention import CACHED, register_cached
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.picking import Picker
from udfs.generation.room import Room
from udfs.model.precision import DevicePlan
from udfs.tasks.registry import make_spec
from udfs.wire.faults import FINE, TOO_LARGE
from udfs.wire.items import Items

NEW, WANTED, AT_ONCE, PIECE = 12, 1024, 4, 32
TOKEN_OF_A_STEP = 8  # takes as much memory as so many in the cache

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=on_gpu)])
def llama(request: pytest.FixtureRequest) -> Any:
    return make_writer("Llama").to(request.param)


class Memory:
    """A device's memory, of which others have some; told in tokens of the cache.

    Args:
        left: To us.
        others: May change it as a step begins, whose tokens they see, or as somebody looks what is free (None).

    Attributes:
        time: Steps and looks so far.
    """

    def __init__(self, left: int, others: Callable[[Memory, torch.Tensor | None], None] = lambda *_: None) -> None:
        self.left, self.time, self._others = left, 0, others
        self.rooms: list[Room] = []
        self.held: list[int] = []  # by the cache, in each step that went through
        self.sizes: list[int] = []  # of the steps that went through
        self._lock = threading.Lock()

    def cached(self) -> int:
        return sum(made.arena.tokens for made in self.rooms)

    def free_bytes(self) -> int:
        self._pass(None)
        return max(0, self.left - self.cached()) * self.rooms[0].arena.token_bytes

    def check(self, more: int = 0) -> None:
        if self.cached() + more > self.left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def _pass(self, ids: torch.Tensor | None) -> None:
        self.time += 1
        self._others(self, ids)

    def step(self, ids: torch.Tensor) -> None:
        with self._lock:
            self._pass(ids)
            self.check(TOKEN_OF_A_STEP * len(ids))
            self.held.append(self.cached())
            self.sizes.append(len(ids))


@contextmanager
def _running(model: Any, memory: Memory, *, lanes: int = 1, pause_s: float = 0.0) -> Iterator[Scheduler]:
    register_cached()
    model.set_attn_implementation(CACHED)
    device = str(model.device)
    spec = make_spec(task="text-generation", model="tiny", template="{{ x }}", max_new_tokens=NEW)
    picker = Picker(spec.options, ends=frozenset({END}), tokenizer=None)
    kinds = _kinds(model)
    zeros = cache._zeros

    def run(*, input_ids: torch.Tensor, **options: Any) -> Any:
        memory.step(input_ids[0])
        return model(input_ids=input_ids, **options)

    def allocate(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        memory.check()
        return zeros(shape, like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_zeros", allocate)
        patch.setattr(room, "_CPU_SHARE", room._CUDA_SHARE)
        patch.setattr(room, "available_memory", memory.free_bytes)
        patch.setattr(torch.cuda, "mem_get_info", lambda: (memory.free_bytes(), 1 << 40))
        patch.setattr(room, "_REST_S", 0.0)
        patch.setattr("udfs.engine.runner._MEMORY_PAUSE_S", pause_s)
        memory.rooms = [Room(Arena(0, dict(kinds)), WANTED, device, lanes) for _ in range(lanes)]
        for made in memory.rooms:
            made.fill()
        decoders = [
            Decoder(
                run,
                picker,
                made.arena,
                device=device,
                max_new_tokens=NEW,
                max_sequences=AT_ONCE,
                step_tokens=PIECE,
                room=made,
            )
            for made in memory.rooms
        ]
        budget = Budget(AT_ONCE, 1)
        scheduler = Scheduler(budget, pad_multiple=0, lanes=lanes, singly=True)
        runner = WritingRunner(decoders, Shell("tiny"), scheduler, budget, threads=1)
        try:
            yield scheduler
        finally:
            scheduler.close()
            runner.join(30)


def _kinds(model: Any) -> dict[int, torch.Tensor]:
    decoder = put_to_write(model, device=str(model.device))
    write_all(decoder, make_prompts(1))
    return decoder._arena.kinds


def _write(scheduler: Scheduler, prompts: list[np.ndarray], client: str = "a") -> Parcel:
    items = Items(np.concatenate(prompts), np.concatenate([[0], np.cumsum([len(p) for p in prompts])]))
    scheduler.put(Parcel(client, 0, items))
    return next(scheduler.answers(client))


def _ids(parcel: Parcel) -> list[list[int] | None]:
    return [None if answer is None else answer.ids.tolist() for answer in parcel.written or []]


_wanted: dict[bytes, list[int]] = {}


def _alone(model: Any, prompts: list[np.ndarray]) -> list[list[int]]:
    model.set_attn_implementation("eager")
    for prompt in prompts:
        if prompt.tobytes() not in _wanted:
            _wanted[prompt.tobytes()] = write_alone(model, prompt, max_new_tokens=NEW)
    return [_wanted[prompt.tobytes()] for prompt in prompts]


def test_the_memory_of_a_cache_is_taken_as_it_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(task="text-generation", model=save_writer(tmp_path), precision="float32", max_new_tokens=NEW)
    token_bytes = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, numbers of a head, bytes
    monkeypatch.setattr(room, "available_memory", lambda: 10_000 * token_bytes)
    plan = DevicePlan("cpu", "float32", "")
    decoders = loading.load_writer(spec, plan, name="", lanes=2)
    assert isinstance(decoders, list)
    for decoder in decoders:
        assert isinstance(decoder, Decoder)
        arena = decoder._arena
        assert arena.tokens == room._CPU_SHARE * 10_000 / 2
        assert arena.token_bytes == token_bytes
        for states in (arena.keys, arena.values):
            assert [tuple(part.shape) for part in states.values()] == [(arena.tokens + 1, 2, 8)] * 3


def test_an_engine_without_room_for_any_text_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(task="text-generation", model=save_writer(tmp_path), precision="float32", max_new_tokens=NEW)
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="out of memory: beside the weights there is room for"):
        loading.load_writer(spec, DevicePlan("cpu", "float32", ""), name="", lanes=1)


@pytest.mark.long
def test_a_cache_gives_way_to_others_and_all_grows_back(llama: Any) -> None:
    """The 40th step finds a third of the memory, the 120th all of it again."""
    prompts = make_prompts(10, shared=10) * 5
    wanted = _alone(llama, prompts)

    def others(memory: Memory, _: torch.Tensor | None) -> None:
        memory.left = {40: 700, 120: 2000}.get(memory.time, memory.left)

    memory = Memory(2000, others)
    with _running(llama, memory) as scheduler:
        parcels = [_write(scheduler, prompts, client) for client in "abcd"]
    for parcel in parcels:
        assert (parcel.faults == FINE).all()
        assert _ids(parcel) == wanted
    assert memory.held[0] == WANTED
    assert min(memory.held) < 700
    assert memory.held[-1] == WANTED
    assert max(memory.sizes[:30]) == PIECE
    last = memory.sizes[-300:]
    assert max(last) > PIECE // 2  # pieces have grown
    assert sum(size == AT_ONCE for size in last) > 20  # and sequences


def test_a_prompt_for_which_memory_does_not_do_is_read_in_smaller_pieces(llama: Any) -> None:
    prompts = [np.arange(6, 66, dtype=np.int32), *make_prompts(5)]
    wanted = _alone(llama, prompts)

    def others(_: Memory, ids: torch.Tensor | None) -> None:
        if ids is not None and len(ids) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with _running(llama, memory := Memory(5000, others)) as scheduler:
        parcel = _write(scheduler, prompts)
    assert (parcel.faults == FINE).all()
    assert _ids(parcel) == wanted
    assert max(memory.sizes) <= 9


@pytest.mark.parametrize("lanes", [1, 2])
def test_memory_that_is_out_for_a_while_costs_no_row(llama: Any, lanes: int) -> None:
    """Not even one that has to be tried alone, several times."""
    prompts = make_prompts(10)
    wanted = _alone(llama, prompts)

    def others(memory: Memory, _: torch.Tensor | None) -> None:
        memory.left = 0 if 5 <= memory.time < 25 else 5000

    with _running(llama, Memory(5000, others), lanes=lanes) as scheduler:
        parcel = _write(scheduler, prompts)
    assert (parcel.faults == FINE).all()
    assert _ids(parcel) == wanted


def test_a_prompt_that_waits_for_memory_holds_nobody_up_and_fails_in_the_end(llama: Any) -> None:
    poison = 2
    prompts = make_prompts(9)
    wanted = _alone(llama, prompts)
    answered, after = threading.Event(), [0]

    def others(_: Memory, ids: torch.Tensor | None) -> None:
        if ids is not None and (ids == poison).any():
            after[0] += answered.is_set()
            raise torch.OutOfMemoryError("CUDA out of memory")

    with _running(llama, Memory(5000, others), pause_s=0.05) as scheduler:
        failing = threading.Thread(
            target=lambda: found.append(_write(scheduler, [np.full(9, poison, dtype=np.int32)], "bad"))
        )
        found: list[Parcel] = []
        failing.start()
        parcel = _write(scheduler, prompts)
        answered.set()
        failing.join()
        again = _write(scheduler, [np.full(11, poison, dtype=np.int32), prompts[0]], "again")
    assert (parcel.faults == FINE).all()
    assert _ids(parcel) == wanted
    assert found[0].faults.tolist() == [TOO_LARGE]
    assert after[0] >= 2
    assert again.faults.tolist() == [TOO_LARGE, FINE]


def test_a_prompt_for_which_the_cache_has_become_too_small_waits_for_memory(llama: Any) -> None:
    long = make_prompts(1, longest=3, shared=300)
    wanted = _alone(llama, long)

    def others(memory: Memory, _: torch.Tensor | None) -> None:
        memory.left = 5000 if memory.time > 5 else 150

    memory = Memory(150, others)
    with _running(llama, memory) as scheduler:
        assert memory.cached() < 300
        parcel = _write(scheduler, long)
    assert parcel.faults.tolist() == [FINE]
    assert _ids(parcel) == wanted


@pytest.mark.long
@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(60, 1200), min_size=1, max_size=12),
    st.lists(st.integers(1, 6), min_size=12, max_size=12),
    st.integers(1, 2),
)
def test_whatever_others_take_and_give_back_no_row_is_lost(
    llama: Any, lefts: list[int], lengths: list[int], lanes: int
) -> None:
    prompts = make_prompts(14, shared=10)
    wanted = _alone(llama, prompts)
    changes = dict(zip(np.cumsum(lengths).tolist(), lefts, strict=False))

    def others(memory: Memory, _: torch.Tensor | None) -> None:
        memory.left = changes.get(memory.time, memory.left)
        if memory.time > 80:
            memory.left = 3000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udfs.engine.runner._MEMORY_TRIES", 100)  # steps are the time here, and a try is one or two
        with _running(llama, Memory(2000, others), lanes=lanes) as scheduler:
            parcel = _write(scheduler, prompts)
    assert _ids(parcel) == wanted
    assert (parcel.faults == FINE).all()
