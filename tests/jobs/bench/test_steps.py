from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from jobs.bench import steps
from jobs.errors import UserError
from jobs.job_file import load_settings
from tests.random_writers import save_writer


def _job(path: Path, score: str) -> Path:
    job = path / "job.yaml"
    job.write_text(f"input: {{path: none}}\noutput: {{path: {path / 'out'}}}\nscore: {{{score}}}\n")
    return job


def test_the_parts_of_a_step_are_told_with_a_model_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SEQUENCES", (4,)), ("_REAL_SEQUENCES", (2,)), ("_STEPS", 3), ("_REAL_STEPS", 2)):
        monkeypatch.setattr(steps, name, value)
    for name, value in (("_ANSWER", 6), ("_REAL_ANSWER", 4), ("_PROMPT", 40), ("_SHARED", 30), ("_WORDS", 97)):
        monkeypatch.setattr(steps, name, value)
    model, told = save_writer(tmp_path / "model"), tmp_path / "figures.json"
    settings = load_settings(_job(tmp_path, f"task: text-generation, model: {model}, prompt: '{{{{ text }}}}'"), None)
    figures = steps.run_steps_bench(settings, rounds=1, json_path=told, console=Console(quiet=True))
    assert [(f.sequences, f.shared) for f in figures] == [(4, 0), (4, 0), (4, 30), (4, 30), (2, 0)]
    assert [f.model for f in figures] == ["none", "none, looks for drafts"] * 2 + [model]
    for figure in figures:
        assert sum(figure.parts_ms.values()) == pytest.approx(figure.step_ms)
        assert all(ms >= 0 for ms in figure.parts_ms.values())
        assert figure.tokens_per_s > 0
        assert (figure.lane_ms is not None) == (figure.model != model)
    assert figures[2].read < figures[0].read  # what is shared is not read again
    assert [one["sequences"] for one in json.loads(told.read_text())] == [4, 4, 4, 4, 2]


def test_a_job_that_reads_has_no_such_steps(tmp_path: Path) -> None:
    settings = load_settings(_job(tmp_path, "task: feature-extraction, model: none, text: text"), None)
    with pytest.raises(UserError, match="--steps measures models that write"):
        steps.run_steps_bench(settings, rounds=1, json_path=None, console=Console(quiet=True))
