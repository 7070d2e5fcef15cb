from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import without_spark
from tests.random_writers import save_writer


@pytest.mark.long
def test_a_job_that_writes_is_measured_without_spark_and_without_java(tmp_path: Path) -> None:
    told, job = tmp_path / "figures.json", tmp_path / "job.yaml"
    model = save_writer(tmp_path / "model")
    job.write_text(
        f"input: {{path: none}}\noutput: {{path: {tmp_path / 'out'}}}\n"
        f"score: {{task: summarization, model: {model}, text: text, max_new_tokens: 4, max_tokens: 200}}\n"
    )
    command = ["bench", str(job), "--texts", "short", "--rows", "4", "--rounds", "1", "--json", str(told)]
    done = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", *command],
        cwd=ROOT, env=without_spark(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [figure["name"] for figure in json.loads(told.read_text())["figures"]]
    assert names[:2] == ["gristmill", "model.generate, one at a time"]
