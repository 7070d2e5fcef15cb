"""Deadlines as people write them: a duration (`2h`, `1h30m`), a time of the day (`06:00`), a date with a time."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import Any

Deadline = timedelta | datetime | time

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "min": "minutes", "s": "seconds"}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)\s*")
_FORMS = "write a duration as 2h, 90m or 1h30m, a time as '06:00', a date as '2026-11-25 06:00'"


def parse_deadline(value: Any) -> Deadline | None:
    """A deadline out of a setting's value.

    Args:
        value: Text; or what YAML makes of an unquoted date.

    Raises:
        ValueError: It is none. An unquoted 12:30 is one of them: to YAML it is the number 750.
    """
    match value:
        case None | timedelta() | datetime() | time():
            return value
        case date():
            return datetime(value.year, value.month, value.day)
        case str():
            return _parse_text(value.strip())
    raise ValueError(f"{value!r} is no deadline; {_FORMS} (in quotes: YAML reads 12:30 as a number)")


def deadline_at(deadline: Deadline | None, started_at: datetime) -> datetime | None:
    """The moment that a deadline means to a run that started then.

    A duration counts from the start; a time of the day is the next one; without a zone it is this machine's.
    """
    match deadline:
        case timedelta():
            return started_at + deadline
        case datetime():
            return deadline.astimezone()
        case time():
            local = started_at.astimezone(deadline.tzinfo)
            # By the calendar, since a night may have 23 hours, and a time that clocks skip is the day's before it.
            days = (local.date() + timedelta(days=n) for n in range(3))
            times = (datetime.combine(day, deadline, tzinfo=deadline.tzinfo).astimezone() for day in days)
            return next(at for at in times if at > started_at)
    return None


def _parse_text(text: str) -> Deadline:
    if text and not _PART.sub("", text):
        return timedelta(**_sum_parts(text))
    for parse in (time.fromisoformat, datetime.fromisoformat) if ":" in text else ():
        try:
            return parse(text.zfill(5) if re.fullmatch(r"\d:\d\d", text) else text)
        except ValueError:
            continue
    raise ValueError(f"{text!r} is no deadline; {_FORMS}")


def _sum_parts(text: str) -> dict[str, float]:
    parts: dict[str, float] = {}
    for number, unit in _PART.findall(text):
        parts[_UNITS[unit]] = parts.get(_UNITS[unit], 0.0) + float(number)
    return parts
