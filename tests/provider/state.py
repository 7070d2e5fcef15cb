"""What the provider knows: files, batches and what it was asked. It outlives the server's restarts."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.provider.answers import digest
from tests.provider.faults import Faults, Limits, Pace

BY_CLIENT = "canceled by its client"


@dataclass
class StoredFile:
    """A file; its text lies in `path`."""

    id: str
    path: Path
    filename: str
    purpose: str
    created: int

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


@dataclass
class Batch:
    """A batch of either dialect. `lines` holds a request a line; `results` and `errors` come with its end."""

    id: str
    number: int  # of the batches that were made
    dialect: str
    lines: Path
    total: int
    tokens: int
    created: float
    model: str = ""
    endpoint: str = ""
    metadata: dict[str, str] | None = None
    input_file: str = ""
    problems: list[dict[str, Any]] = field(default_factory=list)  # why it failed as a whole
    polls: int = 0
    cancelled: float | None = None
    done_at_cancel: float = 1.0
    ended: str = ""  # failed, completed, expired, cancelled
    ended_at: float | None = None
    results: StoredFile | None = None
    errors: StoredFile | None = None
    counts: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    lies: str = ""  # the fault of what it tells about itself


class State:
    """Everything that lasts, and the counters. `lock` is held while any of it changes."""

    def __init__(
        self,
        folder: Path,
        *,
        faults: Faults,
        limits: Limits,
        pace: Pace,
        models: frozenset[str] | None,
        without: frozenset[str],
    ) -> None:
        self.folder, self.faults, self.limits, self.pace = folder, faults, limits, pace
        self.models, self.without = models, without
        self.lock = threading.RLock()
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, Batch] = {}
        self.asked = 0
        self.times_asked: Counter[bytes] = Counter()  # by body, in batches
        self.times_called: Counter[Any] = Counter()  # by kind of call; live calls by body
        self.faults_a_row: Counter[Any] = Counter()
        self.failures: Counter[str] = Counter()  # by fault
        self.canceled = 0
        self.asked_twice = 0
        self.live_calls = 0
        self.refused_live = 0  # for the rates of `limits`
        self.live_at_once = 0
        self.most_live_at_once = 0
        self.live_past: deque[tuple[float, int]] = deque()  # times and tokens
        self.headers: deque[dict[str, str]] = deque(maxlen=1000)
        self.calls: Counter[str] = Counter()
        self.made_batches = 0
        self.bugs: list[BaseException] = []  # of the provider itself
        self._open: Counter[bytes] = Counter()
        self._answered: set[bytes] = set()
        self._made = 0

    def new_id(self, prefix: str) -> str:
        """An id that only this provider has given; a later one sorts after it."""
        with self.lock:
            self._made += 1
            return f"{prefix}{self._made:024d}"

    def store(self, filename: str, purpose: str) -> StoredFile:
        """A new file, to be written to its path."""
        id_ = self.new_id("file-")
        stored = StoredFile(id_, self.folder / id_, filename, purpose, int(time.time()))
        with self.lock:
            self.files[id_] = stored
        return stored

    def accept(self, batch: Batch, bodies: Iterable[Any]) -> None:
        """Take a batch in, and count its requests if it is run."""
        with self.lock:
            self.batches[batch.id] = batch
            for body in () if batch.problems else bodies:
                key = digest(body)
                self.asked += 1
                self.times_asked[key] += 1
                self.asked_twice += key in self._answered or self._open[key] > 0
                self._open[key] += 1

    def settle(self, key: bytes, fault: str, *, answered: bool) -> None:
        """Note what became of a request by its body's digest; a cancel of the client's own is no failure."""
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
        if answered:
            self._answered.add(key)
        elif fault == BY_CLIENT:
            self.canceled += 1
        else:
            self.failures[fault or "its own fault"] += 1

    def enqueued_tokens(self, model: str) -> int:
        return sum(b.tokens for b in self.batches.values() if not b.ended and b.model == model)

    def newest_first(self, dialect: str) -> list[Batch]:
        """The batches that are listed."""
        shown = time.time() - self.faults.listed_after_s
        with self.lock:
            return [b for b in reversed(self.batches.values()) if b.dialect == dialect and b.created <= shown]
