"""A run that has nothing to do ends without Spark; and whatever may be something to do is looked at with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from jobs.input.files import InputFiles, list_input
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.preflight import check_model
from jobs.run import retry, score
from jobs.settings import Settings
from jobs.telling.report import RunReport
from jobs.unchanged import LastLook
from tests.models import make_encoder

WriteJob = Callable[..., Path]
ROW = '{"id": 1, "text": "a red kettle"}\n'


@pytest.fixture
def settings(tmp_path: Path, write_job: WriteJob) -> Settings:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(ROW)
    return load_settings(write_job(input={"path": str(folder)}, score={"model": make_encoder(tmp_path / "model")}))


@pytest.fixture
def scored(spark: Any, settings: Settings) -> Settings:
    """The settings of a job that has left nothing."""
    assert score(settings).succeeded == 1
    return settings


@pytest.fixture
def no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.job.open_session", lambda *_, **__: pytest.fail("Spark was asked for"))


def run_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[RunReport, bool]:
    """Score again; whether Spark was asked."""
    from jobs.spark.session import open_session

    asked = []
    monkeypatch.setattr("jobs.job.open_session", lambda *a, **k: asked.append(1) or open_session(*a, **k))
    return score(settings), bool(asked)


def is_unchanged(settings: Settings) -> bool:
    pinned = check_model(settings)
    return LastLook(pinned, Output(pinned)).find_warnings() is not None


def test_nothing_new_needs_no_spark_and_has_its_report(scored: Settings, no_spark: None) -> None:
    report = score(scored)
    assert (report.status, report.rows, report.left) == ("completed", 0, {})
    kept = Path(scored.output.path, f"_gristmill/runs/{report.run_id}.json")
    assert json.loads(kept.read_text())["status"] == "completed"
    assert is_unchanged(scored)


def _add(settings: Settings) -> None:
    Path(str(settings.input.path), "b.json").write_text(ROW)


def _add_below(settings: Settings) -> None:
    below = Path(str(settings.input.path), "day=2")
    below.mkdir()
    (below / "b.json").write_text(ROW)


def _replace_by_an_older_one(settings: Settings) -> None:
    path = Path(str(settings.input.path), "a.json")
    path.write_text(ROW.replace("red", "wet"))
    os.utime(path, (1, 1))


def _take_away(settings: Settings) -> None:
    Path(str(settings.input.path), "a.json").unlink()


def _lose_rows(settings: Settings) -> None:
    shutil.rmtree(Path(settings.output.path, "increment=000000"))


def _lose_marks(settings: Settings) -> None:
    shutil.rmtree(Path(settings.output.path, "_gristmill/marks"))


def _lose_checkpoint(settings: Settings) -> None:
    shutil.rmtree(Path(settings.output.path, "_gristmill/checkpoint"))


def _leave_a_draft(settings: Settings) -> None:
    draft = Path(settings.output.path, "_gristmill/writing/other/increment=000001")
    draft.mkdir(parents=True)
    (draft / "part-0.parquet").write_bytes(b"PAR1")


def _change_the_model(settings: Settings) -> None:
    config = Path(settings.score.model, "config.json")
    config.write_text(config.read_text() + "\n")


def _tear_the_note(settings: Settings) -> None:
    Path(settings.output.path, "_gristmill/nothing-left.json").write_text('{"seen": ')


CHANGES = [
    _add,
    _add_below,
    _replace_by_an_older_one,
    _take_away,
    _lose_rows,
    _lose_marks,
    _lose_checkpoint,
    _leave_a_draft,
    _change_the_model,
    _tear_the_note,
]


def test_what_may_be_something_to_do_is_looked_at_with_spark(scored: Settings, tmp_path: Path) -> None:
    kept = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-kept"))
    for change in CHANGES:
        assert is_unchanged(scored), change
        change(scored)
        assert not is_unchanged(scored), change
        shutil.rmtree(tmp_path)
        shutil.copytree(kept, tmp_path)


def test_other_settings_are_looked_at_with_spark(scored: Settings, write_job: WriteJob) -> None:
    same: dict[str, Any] = {"input": {"path": str(scored.input.path)}, "score": {"model": scored.score.model}}
    assert is_unchanged(load_settings(write_job(**same)))
    for section, values in {
        "input": {"options": {"pathGlobFilter": "*.json"}},
        "output": {"name": "vector"},
        "limits": {"max_error_rate": 0.5},
        "score": {"text": "id"},
        "spark": {"conf": {"spark.hadoop.fs.defaultFS": "hdfs://elsewhere"}},
    }.items():
        other = {**same, section: {**same.get(section, {}), **values}}
        assert not is_unchanged(load_settings(write_job(**other))), section


def test_what_spark_has_elsewhere_under_the_same_names_is_not_taken_for_what_is_here(scored: Settings) -> None:
    pinned = check_model(scored)
    look, path = LastLook(pinned, Output(pinned)), Path(str(pinned.input.path), "a.json")
    _tear_the_note(pinned)
    look.keep(list_input(str(path.parent), [f"hdfs://host:8020{path}"]), [])
    assert not is_unchanged(scored)
    look.keep(list_input(str(path.parent), [f"file://{path}"]), [])
    assert is_unchanged(scored)


def test_a_note_that_cannot_be_kept_costs_no_run(scored: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = check_model(scored)
    look, path = LastLook(pinned, Output(pinned)), Path(str(pinned.input.path), "a.json")
    for name in ("write_json", "walk", "find_json"):
        with monkeypatch.context() as patched:
            patched.setattr(f"jobs.folder.Folder.{name}", Mock(side_effect=OSError("no answer")))
            look.keep(InputFiles(str(path.parent), {}, frozenset({str(path)}), frozenset({"file"})), [])


def test_a_new_password_is_in_nothing_that_is_kept(spark: Any, settings: Settings) -> None:
    def with_password(password: str) -> Settings:
        told = settings.input.model_copy(update={"options": {"password": password}})
        conf = settings.spark.model_copy(update={"conf": {"spark.hadoop.fs.s3a.secret.key": password}})
        return settings.model_copy(update={"input": told, "spark": conf})

    score(with_password("hunter2"))
    assert is_unchanged(with_password("another"))
    kept = Path(settings.output.path, "_gristmill/nothing-left.json").read_text()
    assert "hunter2" not in kept


def test_asked_to_start_afresh_or_to_accept_failures_it_does(scored: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score(scored, overwrite=True).rows == 1
    assert not score(scored, accept_failures=True).rows
    assert run_again(scored, monkeypatch)[1] is False


def test_a_new_file_is_scored_and_then_nothing_is_left(scored: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_again(scored, monkeypatch)[1] is False
    _add(scored)
    report, asked = run_again(scored, monkeypatch)
    assert (report.rows, asked) == (1, True)
    report, asked = run_again(scored, monkeypatch)
    assert (report.rows, asked) == (0, False)


def test_warnings_are_repeated(scored: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_by_an_older_one(scored)
    first, asked = run_again(scored, monkeypatch)
    assert asked
    second, asked = run_again(scored, monkeypatch)
    assert not asked
    assert first.warnings == second.warnings
    assert "replaced in place" in second.warnings[0]


def test_a_file_that_comes_while_it_is_scored_is_not_lost(
    settings: Settings, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.run import read_input

    def read_later(*args: Any) -> Any:
        _add(settings)  # after the first look, before Spark's
        return read_input(*args)

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.read_input", read_later)
        assert score(settings).rows == 2
    assert not is_unchanged(settings)
    assert run_again(settings, monkeypatch)[0].rows == 0
    assert is_unchanged(settings)


def test_what_a_retry_changes_is_looked_at(spark: Any, settings: Settings) -> None:
    Path(str(settings.input.path), "a.json").write_text(ROW + '{"id": 2, "text": null}\n')
    assert score(settings).failed == 1
    assert is_unchanged(settings)
    retry(settings)
    assert not is_unchanged(settings)


def test_a_run_that_ended_badly_is_told_again(spark: Any, settings: Settings, write_job: WriteJob) -> None:
    Path(str(settings.input.path), "a.json").write_text('{"id": 2, "text": null}\n' + ROW)
    strict = settings.model_copy(update={"limits": settings.limits.model_copy(update={"max_error_rate": 0.1})})
    assert score(strict).status == "failed"
    assert not is_unchanged(strict)
