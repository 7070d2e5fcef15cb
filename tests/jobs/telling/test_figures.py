"""The page's figures."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

import pytest

from jobs.output.committed import Committed, Increment
from jobs.telling.figures import draw_rows

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("seconds", [0, 1, 45, 100, 119, 500, 7000, 90_000, 4_000_000, 60_000_000])
def test_rows_over_time_have_ticks_however_long_it_took(seconds: int) -> None:
    begun = datetime(2026, 3, 1, 23, 59, 30, tzinfo=UTC)
    counts = Committed(rows=5, succeeded=5)
    made = [
        Increment(number, "run", (begun + timedelta(seconds=at)).isoformat(timespec="seconds"), 0.5, counts)
        for number, at in enumerate((0, seconds // 2, seconds))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in draw_rows(made).svg
