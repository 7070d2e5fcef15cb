from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from jobs.increments.outlook import Outlook
from jobs.output.committed import Committed, Increment


def _increment(number: int, seconds: float, size: int) -> Increment:
    return Increment(number, "run", "", seconds, Committed(rows=1), 1, size)


def test_what_is_left_is_counted_on_and_the_deadline_is_told_when_it_changes() -> None:
    said, asked = list[str](), list[int]()

    def left() -> Mapping[str, int]:
        asked.append(1)
        return {"a": 600, "b": 600}

    deadline = datetime.now(UTC) + timedelta(seconds=1000)
    outlook = Outlook("run", deadline, [], files=left, say=said.append, warn=lambda _: None)
    outlook.go_on(_increment(0, 1, 200))
    outlook.go_on(_increment(1, 2, 200))
    assert ["in time" in line for line in said] == [True]
    outlook.go_on(_increment(2, 2000, 200))
    assert ["in time" in line for line in said] == [True, False]
    assert outlook.left_bytes == 600
    outlook.go_on(_increment(3, 2, 200))
    assert len(said) == 2
    assert len(asked) == 2  # at the start and with the first rate: never for each increment


def test_a_huge_file_is_told_when_its_time_is_known() -> None:
    warned = list[str]()
    sizes = {"small": 1000, "huge": 10_000_000, "first": 40_000}
    outlook = Outlook("run", None, [], files=lambda: sizes, say=warned.append, warn=warned.append)
    outlook.go_on(_increment(0, 5, 50))  # mostly the model's start
    assert warned == []
    sizes.pop("first")
    outlook.go_on(_increment(1, 40, 40_000))
    assert len(warned) == 1
    assert "huge (the largest: 10.0 MB, about 2.8 h at the rate so far)" in warned[0]
    assert "as 17 files or more" in warned[0]
    outlook.go_on(_increment(2, 400, 400_000))
    assert len(warned) == 1


def test_a_file_that_is_too_large_for_any_device_is_told_before_anything_is_scored() -> None:
    warned = list[str]()
    Outlook("run", None, [], files=lambda: {"huge": 5 << 30}, say=warned.append, warn=warned.append)
    assert "huge (the largest: 5,368.7 MB)" in warned[0]


def test_what_is_left_of_a_table_is_told_in_rows() -> None:
    said = list[str]()
    deadline = datetime.now(UTC) + timedelta(seconds=1000)
    outlook = Outlook("run", deadline, [], rows=100, say=said.append, warn=said.append)
    assert (outlook.left_bytes, said) == (None, [])
    outlook.go_on(replace(_increment(0, 40, 0), counts=Committed(rows=20)))
    assert ["80 rows to go, about 3 min" in line and "in time" in line for line in said] == [True]
    outlook.go_on(replace(_increment(1, 2000, 0), counts=Committed(rows=20)))
    assert "60 rows to go, about 1.7 h" in said[1]
    assert "about 17% of it" in said[1]
    outlook.go_on(replace(_increment(2, 1, 0), counts=Committed(rows=60)))
    assert len(said) == 2  # nothing is left


def test_a_table_whose_rows_nothing_tells_has_no_outlook() -> None:
    said = list[str]()
    outlook = Outlook("run", datetime.now(UTC), [], say=said.append, warn=said.append)
    outlook.go_on(_increment(0, 40, 400))
    assert said == []
