"""What becomes of what Delta says of a table that was changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import SettingsError, explain
from jobs.hiding import seal
from jobs.input.changes import explain_change, explain_vacuumed, takes_all, tell_skipped
from jobs.job_file import load_settings
from jobs.output.fingerprint import describe

STREAM = "[STREAM_FAILED] Query [id = 1-a, runId = 2-b] terminated with exception: "


@pytest.mark.parametrize(
    ("told", "advice"),
    [
        ("[DELTA_SOURCE_TABLE_IGNORE_CHANGES] Detected a data update", "skipChangeCommits: true"),
        ("[DELTA_SOURCE_IGNORE_DELETE] Detected deleted data", "skipChangeCommits: true"),
        ("[DIFFERENT_DELTA_TABLE_READ_BY_STREAMING_SOURCE] unexpected", "--overwrite"),
        ("Delete files are currently not supported in changelog scans", "copy-on-write"),
    ],
)
def test_a_changed_table_is_told_with_what_to_do(told: str, advice: str) -> None:
    bare = explain(RuntimeError(f"{STREAM}{told} SQLSTATE: XXKST"))
    assert bare == told
    error = explain_change(bare)
    assert error is not None
    assert told in str(error)
    assert advice in str(error)


def test_other_errors_are_not_taken_for_changes() -> None:
    assert explain_change("Task failed while writing rows") is None
    assert explain_vacuumed("Task failed while writing rows") is None
    assert explain_vacuumed("the file s/_gristmill/x.parquet cannot be read: java.io.FileNotFoundException: no") is None


def test_what_was_vacuumed_is_told_with_what_to_do() -> None:
    gone = (
        "the file file:/t/_change_data/cdc-0.parquet cannot be read: java.io.FileNotFoundException: File does not exist"
    )
    assert "--overwrite" in str(explain_vacuumed(gone))


def test_how_a_log_is_followed_may_change_and_what_it_gives_may_not(write_job: Callable[..., Path]) -> None:
    def described(**options: object) -> object:
        return describe(load_settings(write_job(input={"options": options})), "00")["input.options"]

    assert described(skipChangeCommits=True, maxFilesPerTrigger=3) == described() == {}
    assert described(**{"streaming-max-files-per-micro-batch": 3}) == {}
    assert described(multiLine=True) == {"multiLine": seal(True, "00")} != described(multiLine=False)


def test_what_is_skipped_is_warned_of() -> None:
    (warning,) = tell_skipped({"skipchangecommits": "true", "streaming-skip-delete-snapshots": False})
    assert "skipChangeCommits" in warning


def test_all_of_a_table_is_scored_unless_options_leave_some_out() -> None:
    assert takes_all({"maxFilesPerTrigger": 3})
    assert not any(map(takes_all, ({"startingVersion": 3}, {"SkipChangeCommits": "true"}, {"ignoreDeletes": True})))


def test_rows_are_not_to_be_read_again(write_job: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match="ignoreChanges gives rows again"):
        load_settings(write_job(input={"format": "delta", "options": {"ignoreChanges": True}}))
