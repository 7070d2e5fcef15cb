"""The zoo: its table holds every architecture that transformers has, and what it says is so."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.zoo.comparing import ZONES, Found, compare
from tests.zoo.forking import run_apart
from tests.zoo.table import architectures, read_table, read_version

_MUST_NOT_BE = {"late", "differs", "died"}
_SHARE = 0.98
# Quick ones of each task, of each way through a model.
_SAMPLE = [
    *(("text-classification", name) for name in ("bert", "bart", "gpt2", "funnel")),
    *(("token-classification", name) for name in ("distilbert", "fnet")),
    *(("feature-extraction", name) for name in ("qwen3", "t5", "canine")),
    *(("text-generation", name) for name in ("llama", "bloom")),
    ("summarization", "marian"),
]
_ZONES = {zone.task: zone for zone in ZONES}


def test_the_table_has_a_row_for_every_architecture_of_the_transformers_that_is_installed() -> None:
    wanted = {(zone.task, name) for zone, names in architectures().items() for name in names}
    rows = read_table()
    told = f"the table is of {read_version()}; run `python -m tests.zoo --again new`, and take away what is gone"
    assert (sorted(wanted - rows.keys()), sorted(rows.keys() - wanted)) == ([], []), told


def test_nothing_in_the_table_hangs_dies_or_answers_otherwise() -> None:
    assert {key: found for key, found in read_table().items() if found.result in _MUST_NOT_BE} == {}


@pytest.mark.parametrize("task", _ZONES)
def test_nearly_all_that_transformers_runs_on_texts_answer(task: str) -> None:
    found = [found.result for (its, _), found in read_table().items() if its == task]
    equal, refused = found.count("equal"), sum(found.count(result) for result in _MUST_NOT_BE | {"refused"})
    assert equal >= _SHARE * (equal + refused)


@pytest.mark.parametrize(("task", "name"), _SAMPLE)
def test_an_architecture_is_as_the_table_has_it(task: str, name: str, tmp_path: Path) -> None:
    assert compare(_ZONES[task], name, tmp_path) == read_table()[task, name]


def test_an_answer_that_is_not_transformers_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from udfs.engine.model import Model

    run = Model.run

    def run_otherwise(self: Model, *given: object) -> object:
        outputs, widths = run(self, *given)  # type: ignore[arg-type]
        return outputs * 1.01, widths

    monkeypatch.setattr(Model, "run", run_otherwise)
    assert compare(_ZONES["text-classification"], "bert", tmp_path).result == "differs"


@pytest.mark.long
@pytest.mark.parametrize("limit_s", [60.0, 0.1])
def test_nothing_is_left_behind_of_an_architecture_that_was_tried(
    limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = run_apart(_ZONES["text-classification"], "bert", limit_s=limit_s)
    assert found.result == ("equal" if limit_s > 1 else "died")
    assert not list(tmp_path.glob("zoo-*"))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("task", _ZONES)
def test_every_architecture_is_as_the_table_has_it(task: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.zoo", task, "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_a_row_says_is_read_as_it_was_written() -> None:
    assert all(isinstance(found, Found) and found.result and found.how for found in read_table().values())
