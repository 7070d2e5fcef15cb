from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from jobs.bench import structured
from jobs.errors import UserError
from jobs.job_file import load_settings
from jobs.settings import Settings
from tests.random_writers import save_writer

SCHEMA = "{type: object, properties: {a: {enum: [tea, soil]}, b: {type: integer}}, required: [a, b]}"


def _load(path: Path, more: str) -> Settings:
    job, model = path / "job.yaml", save_writer(path / "model")
    score = f"task: text-generation, model: {model}, prompt: '{{{{ text }}}}', max_new_tokens: 40, max_tokens: 40"
    job.write_text(f"input: {{path: none}}\noutput: {{path: {path / 'out'}}}\nscore: {{{score}{more}}}\n")
    return load_settings(job, None)


def test_answers_that_are_held_are_compared_with_free_ones_as_long(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    figures = structured.run_structured_bench(
        _load(tmp_path, f", schema: {SCHEMA}"),
        rows=5,
        rounds=1,
        texts="short",
        json_path=told,
        console=Console(quiet=True),
    )
    assert [(f.held, f.drafts) for f in figures] == [(False, False), (True, False), (False, True), (True, True)]
    assert len({f.written for f in figures}) == 1
    free, held, _, drafted = figures
    assert held.steps - free.steps in (0, 1)  # one for the end
    assert drafted.steps < held.steps
    assert free.ratio == free.cpu_ratio == 1
    assert len(json.loads(told.read_text())) == 4


def test_a_job_whose_answers_are_free_has_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--structured measures answers that are held"):
        structured.run_structured_bench(
            _load(tmp_path, ""), rows=5, rounds=1, texts="short", json_path=None, console=Console(quiet=True)
        )
