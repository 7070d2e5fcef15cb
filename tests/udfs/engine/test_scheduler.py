"""Whatever the parcels, budgets, faults and lanes: each item comes back once, to its client, in its place."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.runner import _FAULTS_AT_FIRST, Runner
from udfs.engine.scheduler import ROUND_BATCHES, Scheduler
from udfs.errors import EngineError
from udfs.wire.faults import FAULTY, FINE, TOO_LARGE
from udfs.wire.items import Items

CLIENTS = st.lists(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), max_size=4), min_size=1, max_size=3
)  # clients -> parcels -> lengths of items


class Echo:
    """A model whose output tells the item: its first token and its length. Memory is out above `cap` tokens."""

    name, pad_multiple, width = "here:1:cpu/float32", 1, 2

    def __init__(
        self, cap: int = 1 << 30, *, shrinks_by: int = 0, bad: frozenset[int] = frozenset(), takes_s: float = 0
    ) -> None:
        self.cap, self.shrinks_by, self.bad, self.takes_s = cap, shrinks_by, bad, takes_s
        self.sizes: list[int] = []
        self.running: list[list[int]] = []
        self.beside: list[list[list[int]]] = []  # what ran when each batch began
        self._lock = threading.Lock()

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
        lengths = items.lengths[indices]
        tokens = int(lengths.max()) * len(indices)
        first = items.ids[items.offsets[indices]]
        with self._lock:
            self.running.append(first.tolist())
            self.beside.append(list(self.running))
            self.sizes.append(tokens)
            cap = self.cap
            self.cap = max(20, cap - self.shrinks_by) if self.shrinks_by else cap
        try:
            if tokens > cap:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            time.sleep(self.takes_s)
            if self.bad & set(first.tolist()):
                raise IndexError("index out of range in self")
            return np.stack([first, lengths], axis=1).astype(np.float32), int(lengths.max())
        finally:
            with self._lock:
                self.running.remove(first.tolist())


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.engine.runner._MEMORY_PAUSE_S", 0.0)


def _parcels(clients: list[list[list[int]]]) -> dict[str, list[Parcel]]:
    """Every item begins with a token of its own."""
    made: dict[str, list[Parcel]] = {}
    token = 0
    for client, parcels in enumerate(clients):
        made[f"client {client}"] = []
        for number, lengths in enumerate(parcels):
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            ids = np.zeros(offsets[-1], dtype=np.int32)
            ids[offsets[:-1]] = range(token, token + len(lengths))
            token += len(lengths)
            made[f"client {client}"].append(Parcel(f"client {client}", number, Items(ids, offsets)))
    return made


def _run(parcels: dict[str, list[Parcel]], model: Echo, budget: Budget, lanes: int) -> dict[str, list[Parcel]]:
    scheduler = Scheduler(budget, pad_multiple=1, lanes=lanes)
    Runner(model, scheduler, budget, lanes=lanes)

    def talk(client: str) -> list[Parcel]:
        for parcel in parcels[client]:
            scheduler.put(parcel)
        scheduler.end(client)
        return list(scheduler.answers(client))

    try:
        with ThreadPoolExecutor(len(parcels)) as pool:
            return dict(zip(parcels, pool.map(talk, parcels), strict=True))
    finally:
        scheduler.close()


def _check(answered: dict[str, list[Parcel]], sent: dict[str, list[Parcel]]) -> None:
    for client, parcels in sent.items():
        assert [parcel.number for parcel in answered[client]] == [parcel.number for parcel in parcels]
        for parcel in answered[client]:
            fine = parcel.faults == FINE
            first = parcel.items.ids[parcel.items.offsets[:-1]]
            if fine.any():
                assert parcel.values is not None
                np.testing.assert_array_equal(parcel.values[fine, 0], first[fine])
                np.testing.assert_array_equal(parcel.values[fine, 1], parcel.items.lengths[fine])
                assert (parcel.padded[fine] >= parcel.items.lengths[fine]).all()


@settings(deadline=None, max_examples=60)
@given(CLIENTS, st.integers(1, 200), st.integers(0, 100), st.integers(1, 4))
def test_each_client_gets_its_own_answers_in_its_own_order(
    clients: list[list[list[int]]], most: int, least: int, lanes: int
) -> None:
    sent, model = _parcels(clients), Echo()
    answered = _run(sent, model, Budget(most, least), lanes)
    _check(answered, sent)
    assert all((parcel.faults == FINE).all() for parcels in answered.values() for parcel in parcels)
    assert all(size <= max(most, 40) for size in model.sizes)


@settings(deadline=None, max_examples=60)
@given(CLIENTS, st.integers(20, 300), st.integers(1, 30), st.integers(1, 3))
def test_when_memory_runs_out_only_what_fits_in_no_batch_fails(
    clients: list[list[list[int]]], cap: int, shrinks_by: int, lanes: int
) -> None:
    assume(sum(length > 20 for parcels in clients for lengths in parcels for length in lengths) < _FAULTS_AT_FIRST)
    sent, model = _parcels(clients), Echo(cap, shrinks_by=shrinks_by)
    answered = _run(sent, model, Budget(1000, 100), lanes)
    _check(answered, sent)
    for parcels in answered.values():
        for parcel in parcels:
            assert set(parcel.faults.tolist()) <= {FINE, TOO_LARGE}
            assert (parcel.items.lengths[parcel.faults == TOO_LARGE] > 20).all()  # the cap never falls below 20


@settings(deadline=None, max_examples=40)
@given(CLIENTS, st.frozensets(st.integers(0, 30), max_size=3), st.integers(1, 4))
def test_an_item_that_raises_fails_alone(clients: list[list[list[int]]], bad: frozenset[int], lanes: int) -> None:
    sent = _parcels(clients)
    answered = _run(sent, Echo(bad=bad), Budget(100, 10), lanes)
    _check(answered, sent)
    failed = {
        int(token)
        for parcels in answered.values()
        for parcel in parcels
        for token in parcel.items.ids[parcel.items.offsets[:-1]][parcel.faults == FAULTY]
    }
    items = sum(len(lengths) for parcels in clients for lengths in parcels)
    assert failed == {token for token in bad if token < items}


def test_items_that_are_to_run_alone_run_while_nothing_else_does() -> None:
    sent = _parcels([[[3] * 30], [[3] * 30], [[3] * 10]])
    for parcel in sent["client 2"]:
        parcel.alone = True

    model = Echo(takes_s=0.002)
    answered = _run(sent, model, Budget(12, 1), 3)
    _check(answered, sent)
    assert all((parcel.faults == FINE).all() for parcels in answered.values() for parcel in parcels)
    assert max(len(running) for running in model.beside) > 1
    for running in model.beside:
        assert len(running) == 1 or all(first < 60 for batch in running for first in batch)
    assert all(len(batch) == 1 for running in model.beside for batch in running if batch[0] >= 60)


def test_a_model_that_raises_on_everything_ends_it_with_the_reason() -> None:
    sent = _parcels([[[5] * 100]])
    with pytest.raises(EngineError, match="fails on every text: IndexError"):
        _run(sent, Echo(bad=frozenset(range(100))), Budget(50, 10), 2)


def test_an_item_on_which_a_library_panics_fails_alone() -> None:
    class Panic(BaseException):  # what Rust's panics are in Python
        pass

    class Panicking(Echo):
        def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
            if 7 in items.ids[items.offsets[indices]]:
                raise Panic
            return super().run(items, indices)

    (parcel,) = _run(_parcels([[[5] * 20]]), Panicking(), Budget(100, 10), 2)["client 0"]
    assert (parcel.faults == [FAULTY if number == 7 else FINE for number in range(20)]).all()


def test_many_items_side_by_side_that_raise_do_not_hide_that_others_go_through() -> None:
    bad = frozenset(range(40))
    sent = _parcels([[[30] * 40 + [5] * 60]])  # the longest come first
    (parcel,) = _run(sent, Echo(bad=bad), Budget(100, 10), 2)["client 0"]
    assert (parcel.faults == [FAULTY] * 40 + [FINE] * 60).all()


def test_a_model_for_which_there_is_no_memory_at_all_ends_it_with_the_reason() -> None:
    with pytest.raises(EngineError, match="fails on every text: RuntimeError: CUDA out of memory"):
        _run(_parcels([[[5] * 100]]), Echo(cap=4), Budget(50, 10), 2)


def test_memory_that_somebody_else_has_for_a_moment_costs_no_item() -> None:
    class Occupied(Echo):
        left = 3

        def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
            if len(self.sizes) > 10 and self.left:
                self.left -= 1
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().run(items, indices)

    sent = _parcels([[[5] * 100]])
    (parcel,) = _run(sent, Occupied(), Budget(5, 1), 1)["client 0"]
    assert (parcel.faults == FINE).all()


class Full(Echo):
    """Memory is out for what is longer than 20 tokens, until `times` such batches have been tried."""

    def __init__(self, times: int) -> None:
        super().__init__(20)
        self.times = times

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
        self.times -= items.lengths[indices].max() > 20
        self.cap = 20 if self.times > 0 else 1 << 30
        return super().run(items, indices)


def test_an_item_that_has_never_fitted_waits_for_memory_too_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udfs.engine.runner._MEMORY_PAUSE_S", 0.05)
    sent, model = _parcels([[[30], [30] + [5] * 100]]), Full(6)
    answered = _run(sent, model, Budget(40, 1), 2)
    _check(answered, sent)
    assert all((parcel.faults == FINE).all() for parcel in answered["client 0"])
    assert 5 in model.sizes[model.sizes.index(30) : -1]  # of those that were run meanwhile


@pytest.mark.parametrize(("known_s", "tries"), [(1000.0, 1), (0.0, 5)])
def test_an_item_as_long_as_one_that_has_waited_in_vain_does_not_wait(
    known_s: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But after some time it does again; and a shorter one does, and then one that is as short."""
    monkeypatch.setattr("udfs.engine.runner._KNOWN_S", known_s)
    model, budget = Full(1 << 30), Budget(40, 1)
    scheduler = Scheduler(budget, pad_multiple=1, lanes=1)
    Runner(model, scheduler, budget, lanes=1)
    taken = {}
    try:
        for number, length in enumerate([5, 30, 31, 25, 26]):
            scheduler.put(Parcel("a", number, Items(np.zeros(length, dtype=np.int32), np.array([0, length]))))
            (fault,) = next(scheduler.answers("a")).faults
            assert fault == (FINE if length == 5 else TOO_LARGE)
            taken[length] = model.sizes.count(length)
    finally:
        scheduler.close()
    assert taken == {5: 1, 30: 1 + 5, 31: 1 + tries, 25: 1 + 5, 26: 1 + tries}  # once among others, then alone


@pytest.mark.parametrize("shared", [True, False])
def test_nobody_waits_for_memory_that_nobody_else_has(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.engine.runner.is_shared", lambda: shared)
    sent, model = _parcels([[[5] * 10, [30]]]), Full(4)
    answered = _run(sent, model, Budget(40, 1), 1)
    assert answered["client 0"][1].faults.tolist() == [FINE if shared else TOO_LARGE]


def test_what_memory_ran_out_with_is_let_go_before_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[np.ndarray]] = []
    freed = []

    class Holds(Echo):
        def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
            states = np.zeros(3)
            held.append(weakref.ref(states))
            return super().run(items, indices)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(all(states() is None for states in held)))
    answered = _run(_parcels([[[5] * 100]]), Holds(20), Budget(400, 1), 1)
    assert (answered["client 0"][0].faults == FINE).all()
    assert freed
    assert all(freed)


def test_what_a_client_sends_after_it_is_gone_is_let_go() -> None:
    scheduler = Scheduler(Budget(10, 1), pad_multiple=1, lanes=1)
    (parcel,) = _parcels([[[5] * 4]])["client 0"]
    scheduler.drop("client 0")
    scheduler.put(parcel)
    assert scheduler.idle()
    assert list(scheduler.answers("client 0")) == []


def test_clients_are_served_in_turn_whoever_has_more() -> None:
    scheduler = Scheduler(Budget(10, 1), pad_multiple=1, lanes=1)
    sent = _parcels([[[10] * ROUND_BATCHES] * 8, [[10] * ROUND_BATCHES] * 2])
    for parcels in sent.values():
        for parcel in parcels:
            scheduler.put(parcel)
    order = []
    while len(order) < 10 and (batch := scheduler.take()):
        order.append(batch.round.parcels[0].client)
        for _ in range(ROUND_BATCHES - 1):
            rest = scheduler.take()
            assert rest is not None
            assert {parcel.client for parcel in rest.round.parcels} == {order[-1]}
    assert order == ["client 0", "client 1"] * 2 + ["client 0"] * 6


def test_a_client_that_is_gone_costs_nothing_more() -> None:
    scheduler = Scheduler(Budget(10, 1), pad_multiple=1, lanes=1)
    sent = _parcels([[[5] * 4], [[5] * 4]])
    for parcels in sent.values():
        scheduler.put(parcels[0])
    first = scheduler.take()
    assert first is not None
    scheduler.drop("client 0")
    scheduler.retry(first, alone=False)
    left = 0
    while not scheduler.idle():
        batch = scheduler.take()
        assert batch is not None
        assert all(parcel.client == "client 1" for parcel, _, _ in batch.by_parcel())
        left += len(batch.indices)
        scheduler.finish(batch, np.zeros((len(batch.indices), 1), dtype=np.float32), 5)
    assert left == 4


def test_a_client_that_sends_faster_than_the_device_is_made_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.engine.scheduler._WAITING_TOKENS", 100)
    scheduler = Scheduler(Budget(10, 1), pad_multiple=1, lanes=1)
    parcels = _parcels([[[10] * 4] * 20])["client 0"]
    taken: list[int] = []

    def send() -> None:
        for parcel in parcels:
            scheduler.put(parcel)
            taken.append(parcel.number)

    sender = threading.Thread(target=send)
    sender.start()
    until = time.monotonic() + 30
    while len(taken) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 3
    Runner(Echo(), scheduler, Budget(10, 1), lanes=1)
    sender.join(5)
    assert len(taken) == 20
    scheduler.close()
