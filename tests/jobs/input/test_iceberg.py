"""What an Iceberg table's snapshots tell, and which of them make an increment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, OutputError
from jobs.increments.listener import Listener
from jobs.increments.scoring import Run, score_spans
from jobs.input.iceberg import Snapshot, next_span, read_lineage
from jobs.input.spans import SHARES, Span
from jobs.job_file import load_settings
from jobs.output.committed import Committed, Increment, name_of
from jobs.settings import InputSettings
from jobs.spark.interrupts import Stop


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


def test_a_table_whose_snapshots_tell_all_its_rows_is_followed_from_the_first() -> None:
    lineage = _lineage("append", "replace", "append", "append")
    assert _all(lineage, None, 10) == [(None, 1), (1, 2), (2, 3), (3, 4)]
    assert _all(lineage, None, 99) == [(None, 4)]
    assert _next([], None, 30) is None


@pytest.mark.parametrize(
    "lineage",
    [_lineage("append", "append", first=7), _lineage("append", "overwrite"), _lineage("append", "delete")],
)
def test_the_first_span_of_others_is_all_that_the_table_holds(lineage: list[Snapshot]) -> None:
    assert _next(lineage, None, 20) == (Span(None, 2), 20)
    assert _next(lineage, Span(None, 2), 20) is None


def test_a_table_by_its_path_is_read_with_the_columns_that_it_has_now() -> None:
    source = InputSettings(format="iceberg", path="/lake/db/texts")
    assert next_span(_lineage("append", "append"), None, source, size=10) == (Span(None, 2, 0, SHARES // 2), 10)
    assert next_span([], None, source, size=10) is None


@pytest.mark.parametrize("option", ["stream-from-timestamp", "Branch", "snapshot-id"])
def test_options_that_ask_for_other_snapshots_are_refused(option: str) -> None:
    source = InputSettings(table="lake.db.texts", options={option: "1"})
    with pytest.raises(InputError, match=rf"input\.options\.{option}: .*leave it out"):
        read_lineage(None, source)  # type: ignore[arg-type]


def test_it_goes_on_from_a_snapshot_that_expired_since_if_the_next_one_is_there() -> None:
    lineage = _lineage("append", "append", "append")[1:]  # its parent is the first
    assert _all(lineage, Span(None, 1), 10) == [(1, 2), (2, 3)]
    with pytest.raises(InputError, match=r"snapshot 1, .*expired"):
        _next(lineage, Span(None, 1, 0, SHARES // 2), 10)  # the rest of it cannot be read


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


def test_an_output_that_does_not_tell_up_to_which_snapshot_it_goes_is_refused(
    write_job: Callable[..., Path], tmp_path: Path
) -> None:
    settings = load_settings(write_job(input={"format": "iceberg"}))
    old = tmp_path / "out" / name_of(0) / "_increment.json"
    old.parent.mkdir(parents=True)
    (tmp_path / "out/_gristmill").mkdir()
    (tmp_path / "out/_gristmill/job.json").write_text("{}")
    old.write_text(json.dumps(asdict(Increment(0, "run", "", 1.0, Committed(rows=1)))))
    run = Run("run", datetime.now(UTC))
    with pytest.raises(OutputError, match=r"read Iceberg as a stream.*--overwrite"):
        score_spans(None, settings, run, _lineage("append"), listener=Listener(), stop=Stop())  # type: ignore[arg-type]


def test_marks_of_earlier_versions_say_how_they_were_hashed() -> None:
    mark = asdict(Increment(0, "run", "", 1.0, Committed(rows=1), input_span=Span(None, 2, 0, 5, ("id",))))
    assert Increment.from_json(json.loads(json.dumps(mark))).input_span == Span(None, 2, 0, 5, ("id",))
    del mark["input_span"]["widened"]
    assert Increment.from_json(mark).input_span == Span(None, 2, 0, 5, ("id",), widened=False)
    later = _next(_lineage("append", "append", first=7), Increment.from_json(mark).input_span, 20)
    assert later is not None
    assert not later[0].widened


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
