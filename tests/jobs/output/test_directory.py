"""What of an output needs no Spark; increments themselves are tested in `test_increments` and `test_faults`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import asdict, astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import folder as folder_module
from jobs.errors import JobError, OutputError
from jobs.folder import Folder
from jobs.increments.listener import Listener
from jobs.increments.scoring import Run, ScoreIncrement, score_once
from jobs.input.files import ReadFile
from jobs.input.spans import Span
from jobs.job_file import load_settings
from jobs.output.committed import Committed, Increment, add_up
from jobs.output.directory import Output
from jobs.spark.interrupts import Stop
from tests.stores import OneLie, driver_on, pretend

JOB = "_gristmill/job.json"
WriteJob = Callable[..., Path]


def test_sums_of_sums_leave_their_parts_as_they_are() -> None:
    part = Committed(rows=3, succeeded=2, failed=1, failed_by_code={"expired": 1}, input_tokens=5, engines={"b": 2})
    other = Committed(rows=1, succeeded=1, engines={"a": 1, "b": 1})
    total = add_up([part, other, part])
    assert (total.rows, total.failed_by_code, total.engines) == (7, {"expired": 2}, {"a": 1, "b": 5})
    assert list(total.engines) == ["a", "b"]
    assert part.engines == {"b": 2}
    assert add_up([]) == Committed()


def test_a_mark_is_read_back_as_it_was_written() -> None:
    made = Increment(3, "run", "2026-11-25T06:00:10.000+00:00", 10.0, Committed(rows=1), gone_files=("file:///in/a",))
    written = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(made).items()}
    assert Increment.from_json(written) == made
    assert made.began_ms == datetime(2026, 11, 25, 6, tzinfo=UTC).timestamp() * 1000


def test_a_full_disk_is_told_in_a_line_whatever_was_to_be_written(
    write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(write_job())

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ScoreIncrement, "commit", fail)
    with pytest.raises(JobError, match=r"increment 0 cannot be committed: .*No space left"):
        score_once(None, settings, Run("run", datetime.now(UTC)), listener=Listener(), stop=Stop())  # type: ignore[arg-type]
    monkeypatch.setattr("jobs.folder.Folder.write_json", fail)
    with pytest.raises(JobError, match=r"report, which cannot be written: .*No space left"):
        Output(settings).write_report("run", {})


def test_increments_of_a_stream_need_its_checkpoint_and_others_have_none(write_job: WriteJob) -> None:
    output, kinds = Output(load_settings(write_job())), ("files", "table", "iceberg", "once")
    output.begin()
    for kind in kinds:
        output.check_whole(kind)  # nothing is committed
    output.folder.write_json("draft/rows.json", 0)
    output.commit("draft", 0, counts=Committed(rows=1), run_id="run", input_span=Span(None, 1))
    output.check_whole("iceberg")
    output.folder.delete("_gristmill/marks/increment=000000.json")
    output.folder.write_json("draft/rows.json", 0)
    output.commit("draft", 0, counts=Committed(rows=1), run_id="run")
    output.check_whole("once")
    for kind in kinds[:2]:
        with pytest.raises(OutputError, match="checkpoint is gone"):
            output.check_whole(kind)
    output.folder.write_json("_gristmill/checkpoint/offsets/0", {})  # of a run that was killed as it had committed
    for kind in kinds[:2]:
        output.check_whole(kind)


class _Forgetful:
    """A file system that says once of each file that it is not there, as HDFS does where it did not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self._read, self._left = Folder.read_json, set(names)
        monkeypatch.setattr(Folder, "read_json", lambda folder, name: self.read_json(folder, name))

    def read_json(self, folder: Folder, name: str) -> Any:
        if name in self._left:
            self._left.discard(name)
            raise FileNotFoundError(name)
        return self._read(folder, name)


def _commit(output: Output, number: int = 0) -> None:
    output.folder.write_json("draft/outcome=succeeded/rows.json", {"number": number})
    output.commit("draft", number, counts=Committed(rows=1), run_id="run")


def test_files_that_were_read_are_not_forgotten_for_one_false_answer(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(write_job())
    output, file = Output(settings), ReadFile("file:///in/a", 1, 2, 3, "4")
    output.begin()
    assert output.read_files() == {}
    _commit(output)
    output.folder.write_json("_gristmill/files/increment=000000.json", [astuple(file)])
    pretend(monkeypatch, "hdfs")
    for at in range(1, 9):
        with driver_on(OneLie(at)), contextlib.suppress(FileNotFoundError):
            assert Output(settings).read_files() == {file.uri: file}


def test_marks_that_are_not_found_are_told_in_a_line(write_job: WriteJob) -> None:
    output = Output(load_settings(write_job()))
    output.begin()
    _commit(output)
    output.folder.rename("_gristmill/marks", "_gristmill/elsewhere")
    with pytest.raises(OutputError, match="which tell what is committed, are not there"):
        output.check_whole("once")


def test_a_job_file_that_once_is_not_found_costs_no_increment(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(load_settings(write_job()))
    output.begin()
    _commit(output)
    _Forgetful(monkeypatch, JOB)
    with pytest.raises(OutputError, match=r"job\.json was there, and is not found now"):
        output.begin()
    assert [increment.number for increment in output.increments()] == [0]
    output.begin()  # the next time the file system answers
    output.begin(overwrite=True)
    assert output.increments() == []
    assert [increment.number for increment in Output(output._settings).increments()] == [0]  # as long as nothing is new
    _commit(output, 1)
    assert [increment.number for increment in Output(output._settings).increments()] == [1]
    assert [name for name in output.folder.entries() if name != "_gristmill"] == ["increment=000001"]


def test_increments_without_a_job_file_are_told_and_kept(write_job: WriteJob) -> None:
    output = Output(load_settings(write_job()))
    output.begin()
    _commit(output)
    output.folder.delete(JOB)
    with pytest.raises(OutputError, match="has increment=000000, but its job file"), output.lock():
        pass
    output.folder.write_json(JOB, {"home": "_gristmill", "layout": 2})
    assert [increment.number for increment in Output(output._settings).increments()] == [0]


def test_nothing_replaces_what_is_committed(write_job: WriteJob) -> None:
    output = Output(load_settings(write_job()))
    output.begin()
    _commit(output)
    with pytest.raises(JobError, match=r"increment=000000 of .* is committed already, and nothing replaces it"):
        _commit(output)
    assert output.folder.read_json("increment=000000/outcome=succeeded/rows.json") == {"number": 0}


def test_a_driver_that_did_not_begin_takes_away_its_lock_alone(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(load_settings(write_job()))
    with output.lock():
        output.begin()
        output.folder.write_json("_gristmill/checkpoint/offsets/0", {})
        _Forgetful(monkeypatch, JOB)
    assert output.folder.read_json("_gristmill/checkpoint/offsets/0") == {}
    assert output.is_begun()


def test_what_is_committed_is_synced_before_its_mark_and_the_mark_before_its_name(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    sync = folder_module._sync
    monkeypatch.setattr(folder_module, "_sync", lambda path: (told.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(Folder, "rename", _told(told, Folder.rename, "rename"))
    output = Output(load_settings(write_job()))
    output.begin()
    _commit(output)
    rows, mark = told.index("sync rows.json"), told.index("sync increment=000000.json.tmp")
    assert rows < mark < told.index("rename") < len(told) - 1
    assert told[-1] == "sync out"


def _told(told: list[str], function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        told.append(name)
        return function(*args)

    return call


def test_two_spellings_of_one_input_are_one_job_and_another_directory_is_another(
    write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(load_settings(write_job()))
    output.begin()
    held = output.folder.read_json(JOB)
    held["job"]["input.path"] = f"file://{tmp_path}/in.jsonl"  # as an earlier gristmill kept it
    output.folder.write_json(JOB, held)
    monkeypatch.chdir(tmp_path)
    Output(load_settings(write_job(input={"path": "./in.jsonl"}))).check(object(), overwrite=False)  # type: ignore[arg-type]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/in.jsonl").write_text("")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"differs in input\.path"):
        Output(load_settings(write_job(input={"path": "./in.jsonl"}))).check(object(), overwrite=False)  # type: ignore[arg-type]
