"""What an Iceberg table's snapshots tell, and which of them make an increment."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InputError
from jobs.iceberg import Snapshot, cut_spans, tells_all
from jobs.settings import InputSettings

Span = tuple[int | None, int]


def _lineage(*operations: str, first: int | None = None) -> list[Snapshot]:
    """Snapshots 1, 2, 3 … of ten bytes each; `first` is the parent of the first."""
    return [Snapshot(n, n - 1 if n > 1 else first, name, 10) for n, name in enumerate(operations, 1)]


def _cut(lineage: list[Snapshot], since: int | None, *, size: int = 1, **options: Any) -> list[Span]:
    return list(cut_spans(lineage, since, InputSettings(table="lake.db.texts", options=options), size=size))


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
    assert _cut(_lineage("append", "overwrite", "delete", first=7), None) == [(None, 3)]
    assert _cut([], None) == []


def test_later_spans_end_with_the_snapshot_that_fills_them_and_the_last_one_always() -> None:
    lineage = _lineage("append", "append", "replace", "append", "append")
    assert _cut(lineage, 1) == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert _cut(lineage, 1, size=20) == [(1, 3), (3, 5)]
    assert _cut(lineage, 1, size=30) == [(1, 4), (4, 5)]
    assert _cut(lineage, 5) == []


def test_changed_rows_end_the_spans_before_them_unless_they_are_to_be_skipped() -> None:
    lineage = _lineage("append", "append", "overwrite", "append", "delete", "append")
    found = cut_spans(lineage, 1, InputSettings(table="lake.db.texts"), size=1)
    assert next(found) == (1, 2)
    with pytest.raises(InputError, match=r"changed or deleted.*3.*`input.options: {streaming-skip-overwrite-snapshots"):
        next(found)
    skip = {"Streaming-Skip-Overwrite-Snapshots": True}
    with pytest.raises(InputError, match=r"delete snapshot: 5.*streaming-skip-delete-snapshots: true"):
        _cut(lineage, 3, **skip)
    assert _cut(lineage, 3, size=99, **skip, **{"streaming-skip-delete-snapshots": "true"}) == [(3, 6)]


def test_a_snapshot_that_is_gone_cannot_be_gone_on_from() -> None:
    with pytest.raises(InputError, match=r"snapshot 99.*expired or rolled back.*--overwrite"):
        _cut(_lineage("append", "append"), 99)
