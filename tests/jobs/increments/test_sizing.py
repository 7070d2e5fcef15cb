from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jobs.increments.sizing import (
    SAMPLE_BYTES,
    bytes_per_s,
    choose_bytes,
    forecast,
    is_off,
    sample_bytes,
    take_for_full,
)
from jobs.output.committed import Committed, Increment

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _increment(number: int, seconds: float, size: int, *, run: str = "a", code: str = "", failed: int = 0) -> Increment:
    counts = Committed(rows=100, failed=failed, failed_by_code={code: failed} if failed else {})
    return Increment(number, run, "", seconds, counts, 1, size)


def test_the_first_increment_is_a_sample_and_the_next_one_takes_ten_minutes() -> None:
    assert choose_bytes(None, left_s=None) == SAMPLE_BYTES
    assert choose_bytes(1000.0, left_s=None) == 600_000


def test_the_longest_of_a_runs_own_increments_tells_its_rate() -> None:
    assert bytes_per_s([]) is None
    earlier = [_increment(0, 100, 100)]
    assert bytes_per_s(earlier, "b") == 1
    own = [_increment(1, 10, 10, run="b"), _increment(2, 20, 200, run="b")]
    assert bytes_per_s([*earlier, *own], "b") == 10
    for code, rate in {"expired": 5, "canceled": 5, "not_finite": 10}.items():  # what was cut off was not scored
        assert bytes_per_s([_increment(0, 100, 1000, code=code, failed=50)]) == rate


def test_a_tables_increment_tells_a_rate_if_the_same_run_had_more_to_score_after_it() -> None:
    def cut(number: int, run: str) -> Increment:
        return Increment(number, run, "", 10.0, Committed(rows=100), input_bound=1000)

    known = take_for_full([cut(0, "a"), cut(1, "a"), cut(2, "b")])
    assert [increment.input_bytes for increment in known] == [1000, None, None]
    assert bytes_per_s(known, "b") == 100
    assert bytes_per_s(take_for_full([cut(0, "a"), cut(1, "b")])) is None
    assert (
        choose_bytes(None, left_s=None, of_table=True) > choose_bytes(0.1, left_s=None, of_table=True) == SAMPLE_BYTES
    )


def test_increments_before_a_deadline_are_shorter() -> None:
    assert choose_bytes(1000.0, left_s=100) == 80_000
    assert choose_bytes(1000.0, left_s=1) == 30_000


def test_another_size_is_worth_a_new_query_only_if_it_cuts_the_rest_otherwise() -> None:
    assert is_off(10, wanted=100, left=1000)
    assert is_off(100, wanted=10, left=1000)
    assert not is_off(10, wanted=15, left=1000)
    assert not is_off(10, wanted=100, left=0)
    assert not is_off(10, wanted=100, left=10)


def test_a_forecast_says_whether_the_deadline_is_kept() -> None:
    in_time, line = forecast("6 rows", 60, now=NOW, deadline=NOW + timedelta(minutes=2))
    assert in_time
    assert line.startswith("6 rows to go, about 60 s at the rate so far: in time")
    in_time, line = forecast("6 rows", 60, now=NOW, deadline=NOW + timedelta(seconds=30))
    assert not in_time
    assert "about 50% of it" in line


def test_the_first_increment_is_what_a_device_does_in_seconds() -> None:
    on_cpu, writer = sample_bytes(on_gpu=False, writes=False), sample_bytes(on_gpu=True, writes=True)
    encoder = sample_bytes(on_gpu=True, writes=False)
    assert SAMPLE_BYTES == on_cpu == sample_bytes(on_gpu=False, writes=True) < writer < encoder
    assert choose_bytes(None, left_s=None, sample=encoder) == encoder
    assert choose_bytes(10.0, left_s=None, sample=encoder) == choose_bytes(10.0, left_s=None)
