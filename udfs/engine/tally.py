"""What an engine has done since it began, and what waits for it: counted by micro-batch, never by row."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from udfs.wire.home import Home


@dataclass
class Tally:
    """Counts of an engine; lanes share it.

    Args:
        batches: Micro-batches that went through, or steps of a model that writes.
        batched: Items that were in them; in each step, of a model that writes.
        items: Items that are done, `tokens` of their own, `padded_tokens` as they went through.
        failed: Items that failed for good.
    """

    batches: int = 0
    batched: int = 0
    items: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count on."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Waiting:
    """What waits for an engine, and what it cuts by.

    Args:
        items, tokens: That no lane has taken yet.
        running: Micro-batches that lanes run.
        budget: What a micro-batch holds now: tokens, or sequences of a model that writes.
    """

    items: int
    tokens: int
    running: int
    budget: int


class StatusFile:
    """Keeps an engine's counts in its home, for whoever watches on the same machine.

    Args:
        home: Where it lives.
        about: Its `name` and `number`.
        look: What it has done, and what waits.
    """

    def __init__(self, home: Home, about: dict[str, Any], look: Callable[[], tuple[Tally, Waiting]]) -> None:
        self._home, self._about, self._look = home, about, look
        self._written: dict[str, Any] | None = None

    def write(self) -> None:
        """Write what holds now, if it is something new."""
        tally, waiting = self._look()
        told = {**self._about, **tally.as_dict(), "waiting": asdict(waiting), "gpu": read_gpu_memory()}
        if told != self._written:
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                self._home.write("status.json", told)
                self._written = told


def read_gpu_memory() -> dict[str, int] | None:
    """Bytes of the device that this process has: `used` by anybody, `reserved` by this one, in `total`."""
    import torch

    if not torch.cuda.is_initialized():  # nor does this begin to use it
        return None
    free, total = torch.cuda.mem_get_info()
    return {"used": total - free, "reserved": torch.cuda.memory_reserved(), "total": total}
