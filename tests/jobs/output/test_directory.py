"""What of an output needs no Spark; increments themselves are tested in `test_increments` and `test_faults`."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError, OutputError
from jobs.increments.listener import Listener
from jobs.increments.scoring import Run, ScoreIncrement, score_once
from jobs.input.spans import Span
from jobs.job_file import load_settings
from jobs.output.committed import Committed, Increment, add_up
from jobs.output.directory import Output

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
        score_once(None, settings, Run("run", datetime.now(UTC)), listener=Listener())  # type: ignore[arg-type]
    monkeypatch.setattr("jobs.folder.Folder.write_json", fail)
    with pytest.raises(JobError, match=r"report, which cannot be written: .*No space left"):
        Output(settings).write_report("run", {})


def test_increments_of_a_stream_need_its_checkpoint_and_others_have_none(write_job: WriteJob) -> None:
    output, kinds = Output(load_settings(write_job())), ("files", "table", "iceberg", "once")
    for kind in kinds:
        output._check_whole(kind)  # nothing is committed
    output.folder.make("draft")
    output.commit("draft", 0, counts=Committed(rows=1), run_id="run", input_span=Span(None, 1))
    output._check_whole("iceberg")
    output.folder.make("draft")
    output.commit("draft", 0, counts=Committed(rows=1), run_id="run")
    output._check_whole("once")
    for kind in kinds[:2]:
        with pytest.raises(OutputError, match="checkpoint is gone"):
            output._check_whole(kind)
    output.folder.write_json("_gristmill/checkpoint/offsets/0", {})  # of a run that was killed as it had committed
    for kind in kinds[:2]:
        output._check_whole(kind)
