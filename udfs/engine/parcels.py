"""What the engine works on: parcels of clients, the rounds that they make, the micro-batches that are cut of these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from udfs.wire.items import Items, join_items, token_places
from udfs.wire.messages import Answer
from udfs.wire.written import Written

_FIRST = np.zeros(1, dtype=np.int64)


@dataclass(eq=False)
class Parcel:
    """Items that a client sent together and gets back together.

    Args:
        client: Who sent it.
        number: The client's own number for it.
        items: N items.
        alone: Each is to be run while nothing else runs: one of them may have killed an engine.
    """

    client: str
    number: int
    items: Items
    alone: bool = False
    values: np.ndarray | None = None
    written: list[Written | None] | None = None
    padded: np.ndarray = field(init=False)
    faults: np.ndarray = field(init=False)
    left: int = field(init=False)
    dropped: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.items)
        self.padded = np.zeros(self.left, dtype=np.int32)
        self.faults = np.zeros(self.left, dtype=np.int8)

    def put(self, where: np.ndarray, values: np.ndarray, width: np.ndarray | int, *, per_token: bool = False) -> None:
        if self.values is None:
            rows = len(self.items.ids) if per_token else len(self.items)
            self.values = np.full((rows, values.shape[1]), np.nan, dtype=np.float32)
        self.values[token_places(self.items.offsets, where)[0] if per_token else where] = values
        self.padded[where] = width
        self.left -= len(where)

    def put_written(self, where: np.ndarray, written: list[Written], width: np.ndarray) -> None:
        if self.written is None:
            self.written = [None] * len(self.items)
        for place, answer in zip(where.tolist(), written, strict=True):
            self.written[place] = answer
        self.padded[where] = width
        self.left -= len(where)

    def put_fault(self, where: np.ndarray, fault: int) -> None:
        self.faults[where] = fault
        self.left -= len(where)


@dataclass(frozen=True, eq=False)
class Round:
    """Parcels of several clients, sorted and cut together.

    Args:
        parcels: Of all clients.
        items: Those of all parcels.
        parcel_of: (N,) the parcel of each item.
        place: (N,) its place in that parcel.
    """

    parcels: list[Parcel]
    items: Items
    parcel_of: np.ndarray
    place: np.ndarray


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Some items of a round, longest first; what still waits of a round is kept in this form too."""

    round: Round
    indices: np.ndarray
    alone: bool = False
    tries: int = 0  # of an item for which memory was out even alone
    not_before: float = 0.0  # such an item waits, by the monotonic clock

    @property
    def lengths(self) -> np.ndarray:
        offsets = self.round.items.offsets
        return offsets[self.indices + 1] - offsets[self.indices]

    def by_parcel(self) -> Iterator[tuple[Parcel, np.ndarray, np.ndarray]]:
        """Each parcel with which of the batch's rows are its, and their places in it."""
        owners = self.round.parcel_of[self.indices]
        if len(owners) == 1:  # of a decoder's hundreds, each step
            yield self.round.parcels[owners[0]], _FIRST, self.round.place[self.indices]
            return
        for owner in np.unique(owners):
            rows = np.flatnonzero(owners == owner)
            yield self.round.parcels[owner], rows, self.round.place[self.indices[rows]]

    def is_dropped(self) -> bool:
        """The client of some of its items is gone."""
        return any(parcel.dropped for parcel, _, _ in self.by_parcel())

    @cached_property
    def whose(self) -> str:
        """Client, number of its parcel and places in it, of all items, as lists of JSON; it is told again and again."""
        told = [(parcel.client, parcel.number, places.tolist()) for parcel, _, places in self.by_parcel()]
        return ", ".join(map(json.dumps, told))

    def digest_alone(self) -> str | None:
        """Digest of the item that runs all by itself; None where several do."""
        return self.round.items.digest(int(self.indices[0])) if self.alone else None


def _make_round(parcels: list[Parcel]) -> Round:
    counts = [len(parcel.items) for parcel in parcels]
    return Round(
        parcels,
        join_items([parcel.items for parcel in parcels]),
        np.repeat(np.arange(len(parcels)), counts),
        np.concatenate([np.arange(count) for count in counts]),
    )


def _without_dropped(batch: MicroBatch) -> MicroBatch | None:
    """What is left of a micro-batch without the items of clients that are gone."""
    gone = np.array([parcel.dropped for parcel in batch.round.parcels])
    left = batch.indices[~gone[batch.round.parcel_of[batch.indices]]]
    return replace(batch, indices=left) if len(left) else None


def make_answer(parcel: Parcel, width: int, *, per_token: bool = False) -> Answer:
    """The answer to a parcel whose items are all done; `width` is that of a model's outputs."""
    if parcel.written is not None or not width:
        written = parcel.written or [None] * len(parcel.items)
        none = np.zeros((len(written), 0), dtype=np.float32)
        return Answer(parcel.number, none, parcel.padded, parcel.faults, written=written)
    values, offsets = parcel.values, parcel.items.offsets if per_token else None
    if values is None:  # every item has a fault
        rows = len(parcel.items.ids) if per_token else len(parcel.items)
        values = np.full((rows, width), np.nan, dtype=np.float32)
    return Answer(parcel.number, values, parcel.padded, parcel.faults, offsets)
