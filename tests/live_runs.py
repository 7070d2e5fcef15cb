"""Runs in the middle, for tests of what is told of them."""

from __future__ import annotations

from typing import Any

from jobs.output.committed import Committed
from jobs.telling.engines import EngineSums
from jobs.telling.live import Live

ENGINE = "node:7:cuda:0/bfloat16/packed"


def make_live(**told: Any) -> Live:
    """A run that has committed two increments and scores the third, of whose engine all is known."""
    counts = Committed(
        rows=300,
        succeeded=290,
        failed=10,
        failed_by_code={"empty_input": 9, "expired": 1},
        scored_rows=280,
        input_tokens=9000,
        padded_tokens=9500,
        engines={ENGINE: 290},
    )
    engines = EngineSums(
        running=1, starts=2, deaths=1, batches=40, batched=400, items=390, tokens=9100, padded_tokens=9600, failed=1,
        waiting_items=12, waiting_tokens=340, budget={ENGINE: 4096}, tokens_per_s=1234.5,
        gpu={ENGINE: {"used": 3 << 30, "reserved": 2 << 30, "total": 80 << 30}},
    )  # fmt: skip
    own = {
        "run_id": "20261127T010203Z-abcdef",
        "command": "score",
        "status": "running",
        "started_at": "2026-11-27T01:02:03+00:00",
        "told_at": "2026-11-27T01:12:03+00:00",
        "beat": 3,
        "host": "elsewhere",
        "pid": 1,
        "process": "x",
        "task": "feature-extraction",
        "model": "m",
        "increments": 2,
        "counts": counts,
        "scoring_s": 30.0,
        "increment": 2,
        "increment_rows": 150,
        "increment_done": 0.25,
        "left_bytes": 5000,
        "seconds_left": 75.0,
        "engines": engines,
    }
    return Live(**{**own, **told})
