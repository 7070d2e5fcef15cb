"""Tables of Delta and Iceberg themselves, with the Spark that they are for; `tests/fetch_lakehouse.py` brings them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.output.committed import name_of
from tests.conftest import ROOT
from tests.fetch_lakehouse import TARGET

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_lakehouse brings the formats"),
]


def _start(scenario: str, kind: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/jobs/input/lakehouse_app.py"), scenario, kind, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{TARGET / 'spark'}:{ROOT}", "SPARK_LOCAL_IP": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(scenario: str, kind: str, folder: Path) -> tuple[dict[str, Any], list[int]]:
    process = _start(scenario, kind, folder)
    said, log = process.communicate(timeout=400)
    assert process.returncode == 0, log[-6000:]
    seen = json.loads(said.splitlines()[-1])
    assert seen["spark"].startswith("4.0.")  # also the oldest that gristmill takes
    return seen["told"], seen["keys"]


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_table_is_followed_by_its_log_and_what_is_changed_stops_it(kind: str, tmp_path: Path) -> None:
    told, keys = _run("followed", kind, tmp_path)
    assert told["empty"][:2] == ["completed", 0]
    assert told["two commits"][:2] == ["completed", 3]
    assert told["nothing new"] == ["completed", 0, 0]
    assert told["one too long"][:2] == ["completed", 2]
    assert told["too long again"][:2] == ["completed", 1]
    assert told["compacted"][:2] == ["completed", 1]
    assert told["another column"][:2] == ["completed", 1]
    assert told["deleted"].startswith("InputError: rows of the table were changed or deleted")
    assert told["deleted, skipped"][:2] == ["completed", 1]
    assert told["changed"][:2] == ["completed", 1]
    assert keys == [1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_what_is_left_of_a_table_is_told_before_a_deadline_and_after_it(kind: str, tmp_path: Path) -> None:
    told, keys = _run("dated", kind, tmp_path)
    said, _ = told["time enough"]
    assert "80 rows to go, about" in said
    assert said.count("in time for the deadline") == 1
    for late in ("no time", "one more night"):  # before anything is scored: the rate is known
        assert "10 rows to go, about" in told[late][0]
    assert [told[name][1] for name in ("time enough", "no time", "one more night")] == [{}, {"rows": 10}, {}]
    assert keys == list(range(1, 131))


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
@pytest.mark.parametrize("committed", [1, 2])
def test_a_killed_driver_s_table_is_gone_on_with(kind: str, committed: int, tmp_path: Path) -> None:
    process = _start("begun", kind, tmp_path)
    mark = tmp_path / f"out/_gristmill/marks/{name_of(committed - 1)}.json"
    while process.poll() is None and not mark.exists():
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert mark.exists()
    told, keys = _run("gone_on", kind, tmp_path)
    status, rows, increments = told["the rest"]
    assert (status, 120 - rows, increments >= 2) == ("completed", 30 * committed, True)
    assert told["nothing new"] == ["completed", 0, 0]
    assert keys == list(range(1, 121))


def test_an_iceberg_table_whose_columns_changed_is_scored_from_the_first_snapshot_on(tmp_path: Path) -> None:
    told, keys = _run("evolved", "iceberg", tmp_path)
    assert told["by name"] == ["completed", 4, 3]
    status, rows, increments = told["by path"]
    assert (status, rows) == ("completed", 4)
    assert increments > 1
    assert told["nothing new"] == ["completed", 0, 0]
    assert keys == [1, 2, 3, 4]


def test_an_iceberg_key_that_is_widened_amid_a_snapshot_loses_no_row(tmp_path: Path) -> None:
    told, keys = _run("widened", "iceberg", tmp_path)
    assert [told[name][0] for name in ("some", "the rest")] == ["completed", "completed"]
    assert 0 < told["some"][1] < 40
    assert "(id is bigint and was int)" in told["with another key"]
    assert keys == list(range(1, 41))


def test_an_iceberg_table_that_forgets_as_a_job_begins_is_scored_whole_by_the_next_run(tmp_path: Path) -> None:
    told, keys = _run("raced", "iceberg", tmp_path)
    assert told["raced"].startswith("InputError: cannot read the input: Cannot find snapshot")
    status, rows, increments = told["again, in shares"]
    assert (status, rows) == ("completed", 41)
    assert increments > 1
    assert told["appended"] == ["completed", 1, 1]
    assert keys == list(range(1, 43))


def test_an_iceberg_table_whose_first_snapshots_are_gone_is_read_as_a_whole_once(tmp_path: Path) -> None:
    told, keys = _run("expired", "iceberg", tmp_path)
    assert told["all that is there"] == ["completed", 4, 1]
    assert told["two commits"] == ["completed", 2, 2]
    assert told["compacted"] == ["completed", 1, 1]
    assert told["deleted"].startswith("InputError: rows of the table were changed or deleted")
    assert told["deleted, skipped"] == ["completed", 1, 1]
    assert told["expired, and no gap"] == ["completed", 2, 1]
    assert told["expired since"].startswith("InputError: the table's snapshot ")
    assert "--overwrite" in told["expired since"]
    assert keys == list(range(1, 11))
