"""Increments in this process: what is new, what is not read and why, when a job stops early, what a retry adds."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BusyError, InputError, JobError, OutputError, TooManyFailed, UserError
from jobs.folder import Folder
from jobs.increments import parts
from jobs.increments import retrying as retrying
from jobs.increments import scoring as increments
from jobs.increments.listener import Listener
from jobs.increments.retrying import check_codes
from jobs.increments.scoring import Run
from jobs.input import reading
from jobs.job import check_report
from jobs.job_file import load_settings
from jobs.output.committed import Committed, Increment
from jobs.output.directory import Output
from jobs.output.frames import Frames
from jobs.output.lock import Lease
from jobs.run import retry, score
from jobs.settings import Settings
from jobs.spark.interrupts import Stop
from jobs.telling.totals import read_totals
from tests.stores import overtake

WriteJob = Callable[..., Path]


@pytest.fixture
def nightly(write_job: WriteJob, tmp_path: Path) -> Callable[..., Settings]:
    """A job on a directory of JSON files; each file is an increment."""

    def make(**sections: dict[str, Any]) -> Settings:
        source = {"path": str(tmp_path / "in"), "increment_bytes": 1, **sections.pop("input", {})}
        return load_settings(write_job(input=source, **sections))

    (tmp_path / "in").mkdir()
    return make


def _write(path: Path, *rows: tuple[int, str | None]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in rows))


def _keys(spark: Any, out: Path, outcome: str = "succeeded") -> Counter[int]:
    return Counter(row["id"] for row in spark.read.parquet(str(out)).where(f"outcome = '{outcome}'").collect())


def test_a_nightly_job_scores_what_is_new_and_tells_what_it_does_not_read(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/one {é}[1]%20.jsonl", (1, "a"), (2, "b"))
    _write(tmp_path / "in/two.jsonl", (3, "c"))
    os.utime(tmp_path / "in/two.jsonl", (86_400, 86_400))  # 1970
    first = score(nightly())
    assert (first.rows, first.increments, first.numbers, first.warnings) == (3, 2, [0, 1], [])
    assert first.input_bytes == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())

    _write(tmp_path / "in/three.jsonl", (4, "d"))
    _write(tmp_path / "in/_hidden.jsonl", (5, "e"))
    _write(tmp_path / "in/deep/four.jsonl", (6, "f"))
    _write(tmp_path / "in/two.jsonl", (7, "g"))
    second = score(nightly(batching={"max_batch_tokens": 512}))
    assert (second.rows, second.numbers) == (1, [2])
    for told, name in zip(second.warnings, ("_hidden.jsonl", "deep/four.jsonl", "two.jsonl"), strict=True):
        assert told.endswith(name) or f"{name};" in told
    assert _keys(spark, tmp_path / "out") == Counter([1, 2, 3, 4])
    assert score(nightly()).rows == 0
    totals = read_totals(str(tmp_path / "out"))
    assert (totals.rows, totals.failed, len(totals.runs)) == (4, 0, 3)


@pytest.mark.long
def test_a_file_that_an_older_one_replaced_is_told(nightly: Callable[..., Settings], tmp_path: Path) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"))
    score(nightly())
    _write(tmp_path / "older.jsonl", (2, "b"))
    os.utime(tmp_path / "older.jsonl", (86_400, 86_400))
    os.replace(tmp_path / "older.jsonl", tmp_path / "in/a.jsonl")  # as `mv`, `cp -p` and `rsync -t` do
    report = score(nightly())
    assert report.rows == 0
    assert "replaced in place after they were scored, and not scored again" in report.warnings[0]


@pytest.mark.long
def test_a_file_that_was_moved_or_has_two_names_is_told_and_left_out_if_asked(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"), (2, None))
    _write(tmp_path / "in/b.jsonl", (3, "b"))
    (tmp_path / "in/c.jsonl").symlink_to(tmp_path / "in/b.jsonl")
    settings = nightly(limits={"max_error_rate": 1})
    first = score(settings)
    assert [Path(name).name for pair in first.repeated_files.items() for name in pair] == ["c.jsonl", "b.jsonl"]
    assert first.rows == 4
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in/moved.jsonl")
    _write(tmp_path / "in/d.jsonl", (4, "d"))
    moved = score(nightly(input={"dedupe_files": True, "increment_bytes": 1 << 20}, limits={"max_error_rate": 1}))
    assert [Path(name).name for name in moved.repeated_files.values()] == ["a.jsonl"]
    assert (moved.rows, moved.input_files) == (1, 1)
    assert _keys(spark, tmp_path / "out") == Counter([1, 3, 3, 4])


@pytest.mark.long
@pytest.mark.parametrize("year", [-5, 1903])
def test_a_file_is_scored_however_old_it_is(nightly: Callable[..., Settings], tmp_path: Path, year: int) -> None:
    for name in ("new", "old"):
        _write(tmp_path / f"in/{name}.jsonl", (1, name))
    long_ago = (year - 1970) * 31_556_952
    os.utime(tmp_path / "in/old.jsonl", (long_ago, long_ago))
    assert score(nightly()).rows == 2


@pytest.mark.long
def test_an_overwrite_throws_nothing_away_before_it_commits(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"))
    score(nightly())
    (tmp_path / "in/b.jsonl").write_text("")
    spark.createDataFrame([(5, "a")], "id int, text string").write.parquet(str(tmp_path / "broken"))
    for part in (tmp_path / "broken").glob("part-*.parquet"):
        part.write_bytes(part.read_bytes()[:-40] + b"x" * 40)
    for source in ({"path": str(tmp_path / "nowhere")}, {"path": str(tmp_path / "broken"), "format": "parquet"}):
        with pytest.raises(UserError):
            score(nightly(input=source), overwrite=True)
        assert _keys(spark, tmp_path / "out") == Counter([1])
    assert read_totals(str(tmp_path / "out")).rows == 1
    assert score(nightly()).rows == 0  # the old job goes on
    _write(tmp_path / "in/a.jsonl", (2, "b"))
    assert score(nightly(score={"max_tokens": 32}), overwrite=True).rows == 1
    assert _keys(spark, tmp_path / "out") == Counter([2])
    _write(tmp_path / "in/c.jsonl", (3, "c"))
    assert score(nightly(score={"max_tokens": 32})).rows == 1
    assert retry(nightly(score={"max_tokens": 32})).rows == 0
    (tmp_path / "in/a.jsonl").unlink()
    (tmp_path / "in/c.jsonl").unlink()
    (tmp_path / "in/none.jsonl").write_text("")
    with pytest.raises(UserError):  # Spark finds no column in nothing
        score(nightly(), overwrite=True)
    assert _keys(spark, tmp_path / "out") == Counter([2, 3])


@pytest.mark.long
def test_partition_columns_and_patterns_of_files_are_kept(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    for day in (1, 2):
        _write(tmp_path / f"in/day={day}/a.jsonl", (day, "a"))
    assert score(nightly()).rows == 2
    assert {(r["id"], r["day"]) for r in spark.read.parquet(str(tmp_path / "out")).collect()} == {(1, 1), (2, 2)}
    other = nightly(input={"path": str(tmp_path / "in/day=*/a.jsonl")}, output={"path": str(tmp_path / "by_pattern")})
    assert score(other).rows == 2


@pytest.mark.long
def test_a_file_that_cannot_be_read_fails_the_job_by_name_or_is_left_out_when_that_is_asked(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    for n in range(3):
        spark.createDataFrame([(n, "a")], "id int, text string").coalesce(1).write.parquet(str(tmp_path / f"p{n}"))
        (part,) = (tmp_path / f"p{n}").glob("part-*.parquet")
        whole = part.read_bytes()
        (tmp_path / f"in/{n} x.parquet").write_bytes(whole if n != 1 else whole[: len(whole) // 2])
    source = {"format": "parquet", "increment_bytes": 1 << 20}
    with pytest.raises(UserError, match=r"in/1 x\.parquet"):
        score(nightly(input=source))
    report = score(nightly(input={**source, "ignore_corrupt": True}))
    assert [Path(name).name for name in report.ignored_files] == ["1%20x.parquet"]
    assert (report.rows, report.increments) == (2, 1)
    assert _keys(spark, tmp_path / "out") == Counter([0, 2])


@pytest.mark.long
def test_a_file_that_is_taken_away_before_it_is_scored_is_told_and_the_others_are_scored(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"))
    settings, count = nightly(input={"increment_bytes": 1 << 20}), reading.count
    monkeypatch.setattr(reading, "count", lambda *read, **how: replace(count(*read, **how), rows=4))
    with pytest.raises(JobError, match="increment 0 was read as 4 rows and written as 3, and is not committed"):
        score(settings)  # it is planned, and not over
    monkeypatch.undo()
    (tmp_path / "in/1.jsonl").rename(tmp_path / "aside")
    report = score(settings)
    assert ([Path(name).name for name in report.gone_files], report.warnings) == (["1.jsonl"], [])
    assert _keys(spark, tmp_path / "out") == Counter([0, 2])
    (tmp_path / "aside").rename(tmp_path / "in/1.jsonl")
    again = score(settings)
    assert again.rows == 0
    assert "1.jsonl; give them new names" in again.warnings[0]


def test_many_small_files_are_held_while_they_are_scored_and_no_longer(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        _write(tmp_path / f"in/{n}.jsonl", (n, f"text {n}"))
    (tmp_path / "in/torn.jsonl.gz").write_bytes(b"no gzip")
    held = []

    def make_parts(*args: Any, **about: Any) -> Any:
        held.append(len(spark._jsc.getPersistentRDDs()))
        return parts.make_parts(*args, **about)

    monkeypatch.setattr(increments, "make_parts", make_parts)
    report = score(nightly(input={"increment_bytes": "auto", "ignore_corrupt": True}))
    assert (report.rows, report.succeeded, len(report.ignored_files)) == (20, 20, 1)
    assert held == [1]
    assert not spark._jsc.getPersistentRDDs()


@pytest.mark.long
def test_a_driver_that_has_lost_its_output_to_another_one_commits_nothing_more(
    nightly: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"))
    for name in ("is_disk", "renames"):  # as on an object store
        monkeypatch.setattr(Folder, name, property(lambda _: False))
    monkeypatch.setattr("jobs.output.lock.Lease", functools.partial(Lease, settle_s=0, renew_s=60, watch_s=0))
    settings, write = nightly(), Frames.write

    def overtaken(self: Frames, scored: Any, name: str) -> None:
        write(self, scored, name)
        if name.endswith("1"):
            overtake(self._folder)

    monkeypatch.setattr(Frames, "write", overtaken)
    with pytest.raises(BusyError, match="was taken over by process"):
        score(settings)
    assert [increment.number for increment in Output(settings).increments()] == [0]


@pytest.mark.long
def test_a_retry_by_key_takes_no_text_of_a_file_that_is_not_scored(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/0.jsonl", (1, None), (2, "a"))
    _write(tmp_path / "in/a [b] é.jsonl", (3, "a"), (4, None))
    settings = nightly(input={"key": ["id"]}, output={"columns": ["id"]})
    score(settings)
    (tmp_path / "in/0.jsonl").unlink()
    _write(tmp_path / "in/1.jsonl", (1, "b"))
    report = retry(settings)
    assert (report.rows, report.succeeded) == (1, 0)  # 4 is still empty
    assert "1 failed rows are left as they are" in report.warnings[0]
    score(settings)
    assert _keys(spark, tmp_path / "out") == Counter([1, 2, 3])


@pytest.mark.long
def test_a_broken_model_stops_the_job_after_the_increment_that_shows_it(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    for n in range(4):
        _write(tmp_path / f"in/{n}.jsonl", *((100 * n + i, None if i % 2 else "a") for i in range(60)))
    settings = nightly(limits={"max_error_rate": 0.1})
    report = score(settings)
    assert (report.status, report.increments) == ("failed", 2)  # 60 rows alone say nothing
    with pytest.raises(TooManyFailed, match="60 of 120 rows failed"):
        check_report(report, settings)
    with pytest.raises(TooManyFailed, match="the last run: 60 of 120 rows failed"):
        score(settings)  # a scheduler that runs it again
    assert len(Output(settings).increments()) == 2
    assert score(settings, accept_failures=True).increments == 2
    assert [i.number for i in Output(settings).increments()] == [0, 1, 2, 3]
    assert score(settings, accept_failures=True).rows == 0  # nothing is new
    assert score(settings).rows == 0  # and it is accepted


@pytest.mark.long
def test_what_was_taken_out_of_an_output_is_told_and_not_forgotten(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    for n in range(2):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"))
    score(nightly())
    (tmp_path / "out/increment=000000").rename(tmp_path / "aside")
    with pytest.raises(OutputError, match="has lost increment=000000"):
        score(nightly())
    assert score(nightly(), overwrite=True).rows == 2


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.long
def test_an_output_without_its_checkpoint_is_refused_since_new_files_would_be_taken_for_old_ones(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path, files: int
) -> None:
    for n in range(files):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"))
    score(nightly())
    (tmp_path / "out/_gristmill/checkpoint").rename(tmp_path / "aside")
    _write(tmp_path / "in/new.jsonl", (9, "a"))
    with pytest.raises(OutputError, match="checkpoint is gone; put it back, or start afresh with --overwrite"):
        score(nightly())
    (tmp_path / "aside").rename(tmp_path / "out/_gristmill/checkpoint")
    assert score(nightly()).rows == 1


@pytest.mark.long
def test_increments_grow_from_a_sample_to_what_ten_minutes_hold(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.increments.sizing.SAMPLE_BYTES", 1)
    for n in range(5):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"))
    assert score(nightly(input={"increment_bytes": "auto"})).increments == 2
    assert _keys(spark, tmp_path / "out") == Counter(range(5))


@pytest.mark.long
def test_a_retry_finds_texts_by_the_key_and_leaves_what_it_cannot_tell_apart(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    rows = [(1, "a"), (2, "long " * 60), (3, "long " * 60), (3, "b"), (4, None)]
    _write(tmp_path / "in/a.jsonl", *rows)
    settings = nightly(input={"key": ["id"]}, output={"columns": ["id"]}, score={"max_tokens": 16, "overflow": "fail"})
    score(settings)
    assert _keys(spark, tmp_path / "out") == Counter([1, 3])
    _write(tmp_path / "in/a.jsonl", *rows[:1], (2, "short"), *rows[2:])
    report = retry(settings)
    assert (report.succeeded, report.failed_by_code, report.numbers) == (1, {"empty_input": 1}, [1_000_000])
    assert _keys(spark, tmp_path / "out") == Counter([1, 2, 3])
    assert retry(settings).rows == 0  # what was retried is not retried twice
    assert retry(settings, only=["empty_input"], again=True).failed == 1
    totals = read_totals(str(tmp_path / "out"))
    assert (totals.rows, totals.succeeded, totals.failed, totals.mended) == (5, 3, 2, 1)
    assert totals.failed_by_code == {"empty_input": 1, "input_too_long": 1}
    assert sorted(path.name for path in (tmp_path / "out").glob("increment=*")) == [
        *(f"increment={number:06d}" for number in (0, 1_000_000)), "increment=1000001",
    ]  # fmt: skip


@pytest.mark.long
def test_a_retry_takes_all_that_were_before_it_into_account(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"), (2, None))
    score(nightly())
    assert [retry(nightly(), again=True).failed for _ in range(3)] == [1, 1, 1]
    assert retry(nightly()).rows == 0


@pytest.mark.parametrize(("code", "is_over"), [("expired", False), ("canceled", False), ("not_finite", True)])
def test_rows_that_nobody_has_tried_are_no_failures(nightly: Callable[..., Settings], code: str, is_over: bool) -> None:
    counts = Committed(rows=10, succeeded=4, failed=6, failed_by_code={code: 6})
    with pytest.raises(TooManyFailed) if is_over else nullcontext():
        increments.check_failed(counts, nightly(limits={"max_error_rate": 0.5}))


@pytest.mark.long
def test_a_retry_that_the_deadline_overtakes_is_expired_only_if_it_left_something(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2):
        _write(tmp_path / f"in/{n}.jsonl", (n, "a"), (10 + n, None))
    score(nightly())
    monkeypatch.setattr(retrying, "TARGET_S", 0)
    monkeypatch.setattr(retrying, "_ROWS", 1)  # a portion for each increment
    publish, published = retrying._publish, list[int]()

    def publish_late(*args: Any) -> Increment:
        published.append(1)
        return publish(*args)

    monkeypatch.setattr(retrying, "_publish", publish_late)
    monkeypatch.setattr(Run, "is_late", lambda _: bool(published))
    cut = retry(nightly())
    assert (cut.status, cut.failed) == ("expired", 1)
    published.clear()
    done = retry(nightly())
    assert (done.status, done.failed) == ("completed", 1)
    assert retry(nightly()).status == "completed"  # nothing to do, however late


def test_a_retry_without_texts_or_a_key_says_what_to_set(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, None))
    settings = nightly(output={"columns": ["id"]})
    score(settings)
    with pytest.raises(InputError, match=r"name it in input\.key"):
        retry(settings)
    with pytest.raises(InputError, match=r"--only names nonsense; the codes are .*bad_template"):
        check_codes("expired, nonsense")


def test_an_output_that_cannot_be_written_is_told(nightly: Callable[..., Settings], tmp_path: Path) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"))
    with pytest.raises(OutputError, match="cannot write to"):
        score(nightly(output={"path": "/proc/gristmill"}))


@pytest.mark.long
def test_an_overwrite_that_was_killed_is_begun_again(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"))
    score(nightly())
    job = Output(nightly()).folder
    job.write_json("_gristmill/job-a/job.json", {"key": "b"})  # it had committed nothing
    assert score(nightly()).rows == 0
    assert job.entries("_gristmill/job-a") == []
    assert score(nightly(), overwrite=True).rows == 1
    held = job.read_json("_gristmill/job.json")
    old = ["increment=000001/part-0.json", "_gristmill/marks"]  # it was killed as this was about to go
    job.write_json("_gristmill/job.json", {**held, "clearing": old})
    job.write_json("_gristmill/marks/increment=000001.json", {})
    job.write_json("increment=000001/part-0.json", {})
    assert score(nightly()).rows == 0
    assert "clearing" not in job.read_json("_gristmill/job.json")
    assert [job.exists(name) for name in ("increment=000001", *old)] == [False, False, False]
    assert _keys(spark, tmp_path / "out") == Counter([1])


@pytest.mark.parametrize("slow", [2, 9])
def test_a_server_that_is_slow_to_start_python_is_asked_again_but_not_for_ever(
    slow: int, monkeypatch: pytest.MonkeyPatch, write_job: WriteJob
) -> None:
    asked = list[int]()

    def run(*_: Any) -> bool:
        asked.append(1)
        if len(asked) <= slow:
            raise JobError("SocketTimeoutException: Timed out while waiting for the Python worker to connect back")
        return False

    monkeypatch.setattr(increments, "_run_query", run)
    monkeypatch.setattr(increments, "read_stream", lambda *_: None)
    monkeypatch.setattr(increments, "has_gpu", lambda _: False)
    options: Any = {"kind": "files", "schema": None, "left": 1, "listener": Listener(), "stop": Stop()}
    stream: Any = increments.score_stream
    score_all = functools.partial(stream, None, load_settings(write_job()), Run("run", datetime.now(UTC)), **options)
    if slow > 3:
        with pytest.raises(JobError, match="Timed out"):
            score_all()
    else:
        score_all()
    assert len(asked) == min(slow, 3) + 1


@pytest.mark.long
def test_records_that_do_not_fit_fail_and_keep_what_they_were(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    _write(tmp_path / "in/a.jsonl", (1, "a"), (2, None))
    (tmp_path / "in/b.jsonl").write_text('{"id": 3, "text": "b"}\n{"id": 4, "te\n')
    settings = nightly(limits={"max_error_rate": 1}, score={"text": "About {{ text }}"}, output={"columns": ["id"]})
    report = score(settings)
    assert (report.rows, report.failed_by_code["malformed"]) == (4, 1)
    assert {Path(uri).name: rows for uri, rows in report.malformed_files.items()} == {"b.jsonl": 1}
    assert any("b.jsonl (1)" in line and "`malformed`" in line for line in report.warnings)

    (tmp_path / "in/c.jsonl").write_text('{"id": "five", "text": "c"}\n')
    report = score(settings)
    assert (report.rows, report.failed_by_code) == (1, {"malformed": 1})
    rows = spark.read.parquet(str(tmp_path / "out")).where("prediction.error.code = 'malformed'").collect()
    assert {(row["id"], row["_corrupt_record"]) for row in rows} == {
        (None, '{"id": 4, "te'),
        (None, '{"id": "five", "text": "c"}'),
    }
    assert {row["prediction"]["usage"]["input_tokens"] for row in rows} == {0}
    assert read_totals(str(tmp_path / "out")).failed_by_code["malformed"] == 2
    by_key = settings.model_copy(update={"input": settings.input.model_copy(update={"key": ["id"]})})
    assert retry(by_key).rows == 1  # the one with no text
    assert score(settings).rows == 0


@pytest.mark.long
def test_csv_files_of_another_order_are_scored_by_name(
    spark: Any, nightly: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "in/a.csv").write_text('id,text\n1,"a ""red""\nkettle"\n2\n')
    settings = nightly(input={"format": "csv", "options": {"header": True}}, output={"columns": ["id"]})
    first = score(settings)
    (tmp_path / "in/b.csv").write_text("text,price,id\n ,7,3\na spade,8,4\n")
    second = score(settings)
    assert (first.failed_by_code, second.failed_by_code) == ({"malformed": 1}, {"empty_input": 1})
    assert any("new columns are left out" in line and "price" in line for line in second.warnings)
    assert _keys(spark, tmp_path / "out") == Counter(["1", "4"])
    again = retry(
        nightly(input={"format": "csv", "options": {"header": True}, "key": ["id"]}, output={"columns": ["id"]})
    )
    assert (again.rows, again.failed_by_code) == (1, {"empty_input": 1})


@pytest.mark.long
def test_a_variant_that_is_kept_is_written(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    query = """SELECT 1 AS id, 'x' AS text, parse_json('{"a": 1}') AS v, array(parse_json('2')) AS w"""
    assert score(load_settings(write_job(input={"path": None, "query": query}))).succeeded == 1
    (row,) = spark.read.parquet(str(tmp_path / "out")).selectExpr("to_json(v) AS v").collect()
    assert row["v"] == '{"a":1}'


def test_a_listing_that_is_false_takes_no_row_of_what_was_written(
    spark: Any, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(load_settings(write_job()))
    rows = spark.range(5).selectExpr("id", "'succeeded' AS outcome")
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "entries", lambda *_, **__: [])
        output.frames.write(rows, "draft")
    assert output.frames.read(spark, "draft").count() == 5
