from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from jobs.bench.versions import run_versions_bench
from jobs.errors import UserError
from jobs.job_file import load_settings
from jobs.settings import Settings
from tests.conftest import ROOT
from tests.random_writers import save_writer


def _settings(path: Path, model: str) -> Settings:
    job = path / "job.yaml"
    job.write_text(
        f"input: {{path: none}}\noutput: {{path: {path / 'out'}}}\n"
        f"score: {{task: text-generation, model: {model}, prompt: '{{{{ text }}}}', max_new_tokens: 4, "
        "max_tokens: 100}\n"
    )
    return load_settings(job, None)


@pytest.mark.long
def test_a_checkout_against_itself_writes_the_same(tmp_path: Path) -> None:
    settings = _settings(tmp_path, save_writer(tmp_path / "model"))
    mine, other = run_versions_bench(
        settings,
        rows=4,
        rounds=2,
        texts="short",
        against=ROOT,
        json_path=tmp_path / "figures.json",
        console=Console(quiet=True),
    )
    assert mine.written == other.written > 0
    assert mine.alike == other.alike == 1.0
    assert other.ratio == 1.0
    assert (tmp_path / "figures.json").exists()


def test_a_directory_that_is_no_checkout_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkout of gristmill"):
        run_versions_bench(
            _settings(tmp_path, "none"),
            rows=1,
            rounds=1,
            texts="short",
            against=tmp_path,
            json_path=None,
            console=Console(quiet=True),
        )
