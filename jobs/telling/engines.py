"""What the engines on this machine do, by the status that each keeps beside its socket."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from udfs.engine.tally import Tally
from udfs.wire.home import Home, find_near

_COUNTS = tuple(Tally().as_dict())


@dataclass(frozen=True)
class EngineSums:
    """Engines of a run together, since it began.

    Args:
        running: Engines that are there now; `starts` and `deaths` since the run began.
        batches, batched, items, tokens, padded_tokens, failed: As of `udfs.engine.tally.Tally`.
        waiting_items, waiting_tokens: That no lane has taken yet.
        budget: What a micro-batch holds now, by engine: tokens, or sequences of a model that writes.
        gpu: Bytes of devices by engine: `used` by anybody, `reserved` by the engine, in `total`.
        tokens_per_s: Since the look before.
    """

    running: int = 0
    starts: int = 0
    deaths: int = 0
    batches: int = 0
    batched: int = 0
    items: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    failed: int = 0
    waiting_items: int = 0
    waiting_tokens: int = 0
    budget: dict[str, int] = field(default_factory=dict)
    gpu: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens_per_s: float | None = None


class EngineLook:
    """Looks at the engines of this process's Spark, and remembers those that are gone."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], dict[str, int]] = {}  # by home and number
        self._starts: dict[str, int] = {}
        self._deaths: set[tuple[str, str]] = set()
        self._before: tuple[float, int] | None = None
        self._seen = False
        self._read()
        self._zero = {name: self._sum(name) for name in _COUNTS}
        self._zero |= {"starts": sum(self._starts.values()), "deaths": len(self._deaths)}

    def look(self) -> EngineSums | None:
        """What they have done since this was made; None where none was seen."""
        there = self._read()
        if not self._seen:
            return None
        waiting = [told["waiting"] for told in there]
        sums = {name: self._sum(name) - self._zero[name] for name in _COUNTS}
        return EngineSums(
            **sums,
            running=len(there),
            starts=sum(self._starts.values()) - self._zero["starts"],
            deaths=len(self._deaths) - self._zero["deaths"],
            waiting_items=sum(one["items"] for one in waiting),
            waiting_tokens=sum(one["tokens"] for one in waiting),
            budget={told["name"]: told["waiting"]["budget"] for told in there},
            gpu={told["name"]: told["gpu"] for told in there if told["gpu"]},
            tokens_per_s=self._rate(sums["tokens"]),
        )

    def _sum(self, name: str) -> int:
        return sum(counts[name] for counts in self._counts.values())

    def _rate(self, tokens: int) -> float | None:
        before, self._before = self._before, (time.monotonic(), tokens)
        if before is None or self._before[0] - before[0] < 0.1:
            return None
        return round((tokens - before[1]) / (self._before[0] - before[0]), 1)

    def _read(self) -> list[dict[str, Any]]:
        """Take in what engines tell now; the statuses of those that are there."""
        there = []
        for home in find_near():
            where = str(home.path)
            if request := _read_json(home, "request.json"):
                self._starts[where] = max(self._starts.get(where, 0), request["number"])
                self._seen = True
            self._deaths |= {(where, path.name) for path in home.path.glob("fallen-*.json")}
            if told := _read_json(home, "status.json"):
                self._counts[where, told["number"]] = {name: told[name] for name in _COUNTS}
                if request and told["number"] == request["number"] and home.is_alive():
                    there.append(told)
        return there


def _read_json(home: Home, name: str) -> dict[str, Any] | None:
    try:
        return home.read(name)
    except (OSError, ValueError):
        return None
