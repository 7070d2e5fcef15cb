"""The result file: whole at any time, and true however the command ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.errors import DeadlineReached, Interrupted, JobError, OutputError, SparkGone, TooManyFailed
from jobs.job_file import load_settings
from jobs.telling.result import ResultFile
from tests.conftest import ROOT
from udfs.errors import ModelError

WriteJob = Callable[..., Path]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (None, 0, "completed"),
        (ModelError("no such model"), 2, "refused"),
        (OutputError("another job's"), 2, "refused"),
        (TooManyFailed("1 of 3 rows failed"), 3, "failed"),
        (DeadlineReached("the deadline came first"), 4, "expired"),
        (SparkGone(), 5, "failed"),
        (JobError("Spark gave up"), 1, "failed"),
        (Interrupted("interrupted", by=signal.SIGTERM), 143, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "denied"), 2, "refused"),
        (OSError(28, "no space"), 1, "failed"),
        (ZeroDivisionError("1/0"), 1, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_end_has_its_code_and_status(tmp_path: Path, error: BaseException | None, code: int, status: str) -> None:
    file = tmp_path / "result.json"
    told = ResultFile(file)
    assert (_read(file)["status"], _read(file)["exit_code"]) == ("running", None)
    with contextlib.suppress(BaseException), told.until_the_end():
        told.run("r1")
        if error is not None:
            raise error
    found = _read(file)
    assert (found["run_id"], found["status"], found["exit_code"]) == ("r1", status, code)
    assert (found["error"] is None) == (error is None)
    assert "[model]" not in str(found["error"])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_command_that_is_refused_leaves_its_result_in_the_place_of_an_older_one(
    write_job: WriteJob, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    file.write_text('{"status": "completed"}')
    job = write_job(score={"model": str(tmp_path / "nowhere")}, output={"path": str(tmp_path / "out")})
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", str(job), "--result", str(file)])
    found = _read(file)
    assert (ended.value.code, found["status"], found["exit_code"]) == (2, "refused", 2)
    assert "not a directory on this machine" in found["error"]
    assert (found["output"], found["report"], found["command"]) == (str(tmp_path / "out"), None, "score")
    assert found["run_id"]
    with pytest.raises(SystemExit):
        cli.main(["score", str(tmp_path / "nothing.yaml"), "--result", str(file)])
    assert "No such file" in _read(file)["error"]
    assert _read(file)["run_id"] is None


def test_a_result_that_cannot_be_written_is_told_before_anything_starts(
    write_job: WriteJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", str(write_job()), "--result", str(tmp_path / "nowhere/result.json")])
    assert ended.value.code == 2
    assert "nowhere/result.json cannot be written: No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_password_of_the_settings_is_in_no_result(write_job: WriteJob, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    conf = {"spark.hadoop.fs.s3a.secret.key": "s3cr3t-key"}
    job = write_job(output={"path": "s3a://ann:pa55word@bucket/out"}, spark={"conf": conf})
    told = ResultFile(file)
    told.begin(load_settings(job))
    with contextlib.suppress(JobError), told.until_the_end():
        raise JobError("cannot open s3a://ann:pa55word@bucket/out with s3cr3t-key")
    assert "pa55word" not in file.read_text()
    assert "s3cr3t-key" not in file.read_text()


@pytest.mark.long
@pytest.mark.cluster
def test_a_run_and_one_that_is_interrupted_leave_their_reports_path(write_job: WriteJob, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    job = write_job()
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(job), "--result", str(file)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = _read(file)
    assert f"run {found['run_id']}" in done.stderr
    assert {name: found[name] for name in ("status", "exit_code", "rows", "succeeded", "failed")} == {
        "status": "completed", "exit_code": 0, "rows": 3, "succeeded": 2, "failed": 1,
    }  # fmt: skip
    assert _read(Path(found["report"]))["run_id"] == found["run_id"]
    (tmp_path / "in.jsonl").rename(tmp_path / "again.jsonl")
    more = write_job(input={"path": str(tmp_path / "again.jsonl")}, output={"path": str(tmp_path / "other")})
    command[4] = str(more)
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("run "):
                break
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    found = _read(file)
    assert (process.returncode, found["status"], found["exit_code"]) == (143, "interrupted", 143)
    assert found["run_id"] in line
