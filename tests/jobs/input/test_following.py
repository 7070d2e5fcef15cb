"""Of changes, what was done last to a key counts; what was only moved does not."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.input.following import CHANGE, ORDER, as_changes, leave_present, part_changes

CHANGES = f"id int, text string, attrs map<string, string>, {CHANGE} string, {ORDER} bigint"


@pytest.mark.parametrize(
    ("changes", "scored", "gone"),
    [
        ([(1, "a", "insert", 0), (2, "b", "INSERT", 0)], [(1, "a"), (2, "b")], []),
        ([(1, "a", "update_preimage", 1), (1, "b", "update_postimage", 1)], [(1, "b")], []),
        ([(1, "a", "DELETE", 1), (1, "b", "INSERT", 1)], [(1, "b")], []),
        ([(1, "a", "DELETE", 1), (1, "a", "INSERT", 1)], [], []),  # moved to another file
        ([(1, "a", "insert", 0), (1, "a", "delete", 1)], [], [1]),
        ([(1, "a", "delete", 0), (1, "a", "insert", 1)], [(1, "a")], []),
        ([(1, "a", "insert", 1), (1, "b", "insert", 1), (1, "c", "insert", 0)], [(1, "a"), (1, "b")], []),
        ([(1, "a", "delete", 1), (1, "b", "delete", 1)], [], [1]),
        ([(1, "a", "update_preimage", 3), (2, "a", "update_postimage", 3)], [(2, "a")], [1]),
        ([(1, "a", "insert", 0), (1, "b", "insert", 2), (1, "c", "insert", 1)], [(1, "b")], []),
        (
            [(None, "a", "insert", 0), (None, "b", "insert", 1), (None, "a", "delete", 2)],
            [(None, "a"), (None, "b")],
            [],
        ),
    ],
)
def test_what_was_done_last_to_a_key_counts(
    spark: Any, changes: list[tuple[Any, ...]], scored: list[tuple[Any, ...]], gone: list[int]
) -> None:
    rows = [(key, text, {"k": "v"}, change, order) for key, text, change, order in changes]
    found, deleted = part_changes(spark.createDataFrame(rows, CHANGES), ["id"])
    assert found.columns == ["id", "text", "attrs"]
    told = sorted(((row["id"], row["text"]) for row in found.collect()), key=str)
    assert told == scored
    assert deleted is not None
    assert sorted(row["id"] for row in deleted.collect()) == gone


def test_rows_without_changes_are_all_scored(spark: Any) -> None:
    frame = spark.range(3)
    assert part_changes(frame, ["id"]) == (frame, None)
    named = as_changes(spark.sql("SELECT 1 AS id, 'x' AS _change_type, 2 AS _commit_version, 3 AS _commit_timestamp"))
    assert named.columns == ["id", CHANGE, ORDER]


def test_a_key_that_the_table_still_has_is_not_gone(spark: Any) -> None:
    gone = spark.createDataFrame(
        [(1, "x", "de"), (1, "y", "de"), (2, "x", "de")], "`A.b` int, `c d` string, lang string"
    )
    table = spark.createDataFrame([(1, "x"), (1, "x"), (None, "y"), (2, None)], "`a.B` int, `c d` string")
    kept = leave_present(gone, table, ["a.b", "C d"])
    assert sorted(map(tuple, kept.collect())) == [(1, "y", "de"), (2, "x", "de")]
