"""What the engine answers to a window, put together from the answers to its parcels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from udfs.errors import BAD_OPTIONS, DEVICE_FAULT, EXPIRED, OUT_OF_MEMORY, RowError
from udfs.wire.faults import FAULTY, FINE, REFUSED, TOO_LARGE
from udfs.wire.items import Items, token_places
from udfs.wire.messages import Answer
from udfs.wire.written import Written

LATE = -1  # of an item that was not answered before the deadline
ERRORS: dict[int, RowError] = {TOO_LARGE: OUT_OF_MEMORY, FAULTY: DEVICE_FAULT, REFUSED: BAD_OPTIONS, LATE: EXPIRED}


@dataclass(frozen=True)
class Outputs:
    """What the engine answers to a window's items.

    Args:
        values: (N, D) float32, row i for item i, or a row a token; D is 0 where nothing was answered.
        padded_tokens: (N,) int32, width of the micro-batch that item i went through.
        faults: (N,) int8, 0 or a key of `ERRORS`.
        engines: Names of the engines that answered, `host:pid:device/precision/batches`.
        engine_of: (N,) int32, which of them answered item i.
        written: N answers of a model that writes, None for an item without one; None of other models.
    """

    values: np.ndarray
    padded_tokens: np.ndarray
    faults: np.ndarray
    engines: list[str]
    engine_of: np.ndarray
    written: list[Written | None] | None = None


class Ticket:
    """A window on its way: its items, and what is there of their outputs."""

    def __init__(self, items: Items) -> None:
        self.items, self.left = items, len(items)
        self._values = np.zeros((self.left, 0), dtype=np.float32)
        self._written: list[Written | None] | None = None
        self._padded = np.zeros(self.left, dtype=np.int32)
        self._faults = np.full(self.left, FINE, dtype=np.int8)
        self._engines: dict[str, int] = {}
        self._engine_of = np.zeros(self.left, dtype=np.int32)
        self._answered = np.zeros(self.left, dtype=bool)

    def put(self, indices: np.ndarray, answer: Answer, engine: str) -> None:
        """Items of the window are answered."""
        if answer.written is None:
            self._put_values(indices, answer)
        else:
            self._put_written(indices, answer.written)
        self._padded[indices] = answer.padded
        self._faults[indices] = answer.faults
        self._settle(indices, engine)

    def _put_values(self, indices: np.ndarray, answer: Answer) -> None:
        per_token = answer.offsets is not None
        if not self._values.shape[1]:
            rows = len(self.items.ids) if per_token else len(self.items)
            self._values = np.full((rows, answer.values.shape[1]), np.nan, dtype=np.float32)
        self._values[token_places(self.items.offsets, indices)[0] if per_token else indices] = answer.values

    def _put_written(self, indices: np.ndarray, written: list[Written | None]) -> None:
        self._written = self._written or [None] * len(self.items)
        for place, answer in zip(indices.tolist(), written, strict=True):
            self._written[place] = answer

    def put_fault(self, indices: np.ndarray, fault: int, engine: str) -> None:
        """Items of the window have failed without an answer."""
        self._faults[indices] = fault
        self._settle(indices, engine)

    def expire(self) -> None:
        """What is not answered by now fails."""
        self._faults[~self._answered] = LATE
        self.left = 0

    def _settle(self, indices: np.ndarray, engine: str) -> None:
        self._engine_of[indices] = self._engines.setdefault(engine, len(self._engines))
        self._answered[indices] = True
        self.left -= len(indices)

    def outputs(self) -> Outputs:
        return Outputs(self._values, self._padded, self._faults, list(self._engines), self._engine_of, self._written)
