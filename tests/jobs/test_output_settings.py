"""Where answers go, as settings say it: what fits together, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SettingsError
from jobs.job_file import load_settings

WriteJob = Callable[..., Path]
TABLE = {"table": "a.b.c", "path": None, "state": "/state"}


@pytest.mark.parametrize(
    ("output", "source", "told"),
    [
        ({"table": "a.b.c"}, {}, "give one of path and table"),
        ({"table": "a.b.c", "path": None}, {}, "table needs state"),
        ({"state": "/x"}, {}, "state is for a table"),
        ({**TABLE, "state": "state"}, {}, "another working directory"),
        ({"format": "delta", "path": "/a/b", "state": "state"}, {}, "another working directory"),
        ({"format": "delta", "path": "/a/b", "state": "/a/b/state"}, {}, "holds its own files alone"),
        ({"format": "iceberg", "path": "a/b", "state": "a/b"}, {}, "holds its own files alone"),
        ({"mode": "merge"}, {"key": ["id"]}, "mode is for a table"),
        ({**TABLE, "mode": "merge"}, {}, r"output\.mode merge needs input\.key"),
        (
            {**TABLE, "mode": "merge", "columns": ["text"]},
            {"key": ["id"]},
            r"needs id of input\.key in output\.columns",
        ),
        ({"name": "Outcome"}, {}, "every output has columns outcome and increment"),
        ({"name": "increment"}, {}, "every output has columns outcome and increment"),
        ({"name": ""}, {}, "take another"),
        ({"columns": ["id", "text", "id"]}, {}, "columns names id twice"),
        ({**TABLE, "format": "openai-batch"}, {}, "makes a results file"),
        (TABLE, {"path": None, "table": "A.b.c"}, r"output\.table a\.b\.c is input\.table"),
        (TABLE, {"path": None, "table": "x", "changes": "follow"}, r"follow needs output\.mode merge"),
        ({**TABLE, "mode": "merge"}, {"key": ["id"], "changes": "follow"}, "is for tables of Delta and Iceberg"),
        (
            {**TABLE, "mode": "merge"},
            {"path": None, "table": "x", "key": ["id"], "changes": "follow", "options": {"skipChangeCommits": True}},
            r"takes all of a table, and input\.options\.skipChangeCommits some of it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    write_job: WriteJob, output: dict[str, Any], source: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(write_job(output=output, input=source))


def test_a_table_by_its_path_is_not_its_own_input(write_job: WriteJob, tmp_path: Path) -> None:
    output = {"path": f"file://{tmp_path}/x", "format": "delta"}
    with pytest.raises(SettingsError, match=r"is input\.path"):
        load_settings(write_job(output=output, input={"path": f"{tmp_path}/x", "format": "delta"}))


def test_state_lies_with_parquet_beside_a_table_or_where_it_is_told(write_job: WriteJob, tmp_path: Path) -> None:
    def output(**told: Any) -> Any:
        return load_settings(write_job(output=told)).output

    assert output().state_path == str(tmp_path / "out")
    assert output(format="iceberg").state_path == f"{tmp_path / 'out'}.gristmill"
    assert output(format="iceberg", state="s3://b/state").state_path == "s3://b/state"
    named = output(**TABLE)
    assert (named.place, named.state_path, named.is_table) == ("a.b.c", "/state", True)
