from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.writing import load_vllm_way
from tests.conftest import ROOT
from tests.pretend_vllm import pretend
from tests.processes import without_spark
from tests.random_writers import END, make_prompts, save_writer
from udfs.model.files import open_model
from udfs.model.precision import DevicePlan
from udfs.tasks.registry import make_spec


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


def test_vllm_writes_all_prompts_too_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = save_writer(tmp_path), make_prompts(5)
    spec = make_spec("text-generation", model, max_new_tokens=4, max_tokens=90)
    asked: Any = spec, open_model(model), prompts, DevicePlan("cuda:0", "bfloat16", "")
    assert load_vllm_way(*asked) == []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    pretend(monkeypatch, lambda prompt: [7, 8, END])
    (way,) = load_vllm_way(*asked)
    assert sum(way.run()) == 2 * len(prompts)
