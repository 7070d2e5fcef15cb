from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from jobs.deadlines import deadline_at, parse_deadline

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2h", NOON + timedelta(hours=2)),
        ("1h 30min", NOON + timedelta(minutes=90)),
        ("1.5h", NOON + timedelta(minutes=90)),
        ("45s", NOON + timedelta(seconds=45)),
        ("13:00+00:00", NOON + timedelta(hours=1)),
        ("11:00+00:00", NOON + timedelta(hours=23)),
        ("2026-03-02 06:00+00:00", NOON + timedelta(hours=18)),
        (None, None),
    ],
)
def test_a_duration_counts_from_the_start_and_a_time_is_the_next_one(written: str | None, at: datetime | None) -> None:
    assert deadline_at(parse_deadline(written), NOON) == at


@pytest.mark.parametrize(
    ("zone", "start", "written", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 28, 12, 0), "06:00", 17),
        ("Europe/Berlin", datetime(2026, 3, 29, 12, 0), "06:00", 18),
        ("Africa/Cairo", datetime(2026, 4, 23, 23, 30), "00:30", 24),  # which clocks skip that night
    ],
)
def test_a_time_of_the_day_is_by_the_calendar_where_clocks_change(
    monkeypatch: pytest.MonkeyPatch, zone: str, start: datetime, written: str, hours: int
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        start = start.astimezone()
        assert deadline_at(parse_deadline(written), start) == start + timedelta(hours=hours)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_yaml_makes_of_a_date_is_a_deadline_too() -> None:
    assert deadline_at(parse_deadline(date(2026, 3, 2)), NOON) == datetime(2026, 3, 2).astimezone()


@pytest.mark.parametrize("written", ["soon", "12", "", "2 weeks", 750, True])
def test_what_is_no_deadline_is_refused_with_how_to_write_one(written: Any) -> None:
    with pytest.raises(ValueError, match="write a duration as 2h"):
        parse_deadline(written)
