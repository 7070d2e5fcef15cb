"""What an Iceberg table's snapshots tell, and which of them make an increment."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.committed import SHARES, Span
from jobs.errors import InputError
from jobs.iceberg import Snapshot, next_span, tells_all
from jobs.settings import InputSettings


def _lineage(*operations: str, first: int | None = None) -> list[Snapshot]:
    """Snapshots 1, 2, 3 … that add ten bytes each; `first` is the parent of the first."""
    return [
        Snapshot(n, n - 1 if n > 1 else first, name, added_bytes=10, total_bytes=10 * n)
        for n, name in enumerate(operations, 1)
    ]


def _next(lineage: list[Snapshot], last: Span | None, size: int, **options: Any) -> tuple[Span, int] | None:
    return next_span(lineage, last, InputSettings(table="lake.db.texts", options=options), size=size)


def _all(lineage: list[Snapshot], last: Span | None, size: int, **options: Any) -> list[tuple[int | None, int]]:
    """Where all spans begin and end, one after the other."""
    found = list[tuple[int | None, int]]()
    while made := _next(lineage, last, size, **options):
        last = made[0]
        found.append((last.start, last.end))
    return found


@pytest.mark.parametrize(
    ("lineage", "all_told"),
    [
        ([], True),
        (_lineage("append", "replace", "append"), True),
        (_lineage("append", "append", first=7), False),
        (_lineage("append", "overwrite"), False),
        (_lineage("append", "delete"), False),
    ],
)
def test_snapshots_tell_all_rows_if_they_go_back_to_the_first_and_nothing_was_changed(
    lineage: list[Snapshot], all_told: bool
) -> None:
    assert tells_all(lineage) is all_told


def test_the_first_span_is_all_that_the_table_holds_whatever_led_to_it() -> None:
    lineage = _lineage("append", "overwrite", "delete", first=7)
    assert _next(lineage, None, 30) == (Span(None, 3), 30)
    assert _next(lineage, Span(None, 3), 30) is None
    assert _next([], None, 30) is None


def test_later_spans_end_with_the_snapshot_that_fills_them_and_the_last_one_always() -> None:
    lineage = _lineage("append", "append", "replace", "append", "append")
    assert _all(lineage, Span(None, 1), 10) == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert _all(lineage, Span(None, 1), 20) == [(1, 3), (3, 5)]
    assert _all(lineage, Span(None, 1), 30) == [(1, 4), (4, 5)]
    assert _all(lineage, Span(None, 5), 10) == []


def test_what_is_too_much_is_cut_by_shares_each_of_the_size_asked_for_and_none_is_missed() -> None:
    lineage = _lineage("append", "append", "append", first=7)
    quarter = SHARES // 4
    first = _next(lineage, None, 7)
    assert first == (Span(None, 3, 0, SHARES * 7 // 30), 6)
    assert _next(lineage, Span(None, 3, 0, quarter), 10) == (Span(None, 3, quarter, quarter + SHARES // 3), 9)
    assert _next(lineage, Span(None, 3, 0, quarter), 20) == (Span(None, 3, quarter, SHARES), 22)
    assert _next(lineage, Span(1, 3, quarter, 2 * quarter), 99) == (Span(1, 3, 2 * quarter, SHARES), 10)
    cut, last = list[Span](), None
    while made := _next(lineage, last, 1):
        last = made[0]
        cut.append(last)
    assert [span.low for span in cut] == [0, *(span.high for span in cut[:-1])]
    assert cut[-1].high == SHARES
    assert 29 <= len(cut) <= 31


def test_changed_rows_end_the_spans_before_them_unless_they_are_to_be_skipped() -> None:
    lineage = _lineage("append", "append", "overwrite", "append", "delete", "append")
    assert _next(lineage, Span(None, 1), 99) == (Span(1, 2), 10)
    with pytest.raises(InputError, match=r"changed or deleted.*3.*`input.options: {streaming-skip-overwrite-snapshots"):
        _next(lineage, Span(1, 2), 99)
    skip = {"Streaming-Skip-Overwrite-Snapshots": True}
    assert _next(lineage, Span(1, 3), 99, **skip) == (Span(3, 4), 10)
    with pytest.raises(InputError, match=r"delete snapshot: 5.*streaming-skip-delete-snapshots: true"):
        _next(lineage, Span(3, 4), 99, **skip)
    assert _all(lineage, Span(1, 3), 99, **skip, **{"streaming-skip-delete-snapshots": "true"}) == [(3, 6)]


def test_a_snapshot_that_is_gone_cannot_be_gone_on_from() -> None:
    for last in (Span(None, 99), Span(98, 99, 0, 5)):
        with pytest.raises(InputError, match=r"snapshot 99.*expired or rolled back.*--overwrite"):
            _next(_lineage("append", "append"), last, 10)


def test_the_rest_of_a_span_is_cut_by_the_key_that_it_was_begun_with() -> None:
    lineage, source = _lineage("append", "append", first=7), InputSettings(table="lake.db.texts")
    first = next_span(lineage, None, source, size=10, key=["id"])
    assert first is not None
    assert first[0] == Span(None, 2, 0, SHARES // 2, ("id",))
    rest = next_span(lineage, first[0], source, size=10, key=["other"])
    assert rest is not None
    assert rest[0] == Span(None, 2, SHARES // 2, SHARES, ("id",))


def test_shares_are_never_so_small_that_reading_is_all_that_is_done() -> None:
    found = _next(_lineage("append", first=7), None, 0)
    assert found is not None
    assert found[0].high == SHARES // 64
