"""Real jobs, in processes of their own, that are killed, starved and interrupted; in the end nothing is lost or twice.

The oracle: keys of succeeded rows plus keys of failed rows are the keys of the input, as multisets; answers are those
of a run without faults; nothing else can be read in the output.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from tests.conftest import LIGHT_JVM, ROOT
from tests.job_faults import plant
from tests.models import WORDS, make_encoder
from tests.processes import running_engines

pytestmark = [pytest.mark.cluster, pytest.mark.long]


class Job:
    """A job on a few small files, run again and again on one output.

    Args:
        path: Where all of it lies.
        files: Input files; each is an increment.
        rows: Rows of a file. The first of each has no text and fails.
        sections: More of the job's YAML.
    """

    def __init__(self, path: Path, *, files: int = 4, rows: int = 60, **sections: dict[str, Any]) -> None:
        self.path, self.out, self.packages = path, path / "out", ""
        self.temporary = Path(tempfile.mkdtemp(prefix="gm-"))
        (path / "in").mkdir()
        self.keys: Counter[int | None] = Counter()
        for number in range(files):
            self.add_file(number, rows)
        job: dict[str, Any] = {
            "input": {"path": str(path / "in"), "increment_bytes": 1, "key": ["id"]},
            "output": {"path": str(self.out)},
            "score": {
                "task": "feature-extraction",
                "model": make_encoder(path / "model"),
                "text": "text",
                "precision": "float32",
            },
            "limits": {"max_error_rate": 0.5},
            "spark": {"master": "local[2]"},
        }
        for name, values in sections.items():
            job[name] = job.get(name, {}) | values
        (path / "job.yaml").write_text(json.dumps(job))  # JSON is YAML

    def add_file(self, number: int, rows: int) -> None:
        """Rows of a file: unique keys, but for a null one and one that is there twice."""
        keys: list[int | None] = [number * 100_000 + row for row in range(rows)]
        keys[2], keys[4] = None, keys[3]
        texts = [None, *(" ".join(WORDS[row % 9 : row % 9 + 1 + row % 11]) + f" {row}" for row in range(1, rows))]
        pq.write_table(pa.table({"id": keys, "text": texts}), self.path / f"in/part-{number:04d}.parquet")
        self.keys.update(keys)

    def start(self, command: str = "score", *args: str, **faults: Any) -> subprocess.Popen[str]:
        site = plant(self.path / "site", **{"engine": {}, **faults})
        return subprocess.Popen(
            [sys.executable, "-c", "from jobs.cli import main; main()", command, str(self.path / "job.yaml"), *args],
            cwd=self.path,
            env={
                **os.environ,
                "PYTHONPATH": f"{site}:{self.packages}{ROOT}",
                "TMPDIR": str(self.temporary),
                "SPARK_LOCAL_IP": "127.0.0.1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str = "score", *args: str, code: int = 0, **faults: Any) -> str:
        """Run a command to its end; returns what it said."""
        process = self.start(command, *args, **faults)
        told = process.communicate(timeout=300)[1]
        assert process.returncode == code, told
        return told

    def rows(self) -> list[dict[str, Any]]:
        """What any reader finds in the output."""
        found = ds.dataset(self.out, format="parquet", partitioning="hive")
        return found.to_table().to_pylist()

    def check(self) -> None:
        """Hold the output against the input."""
        rows = self.rows()
        by_outcome = {o: Counter(r["id"] for r in rows if r["outcome"] == o) for o in ("succeeded", "failed")}
        assert by_outcome["succeeded"] + by_outcome["failed"] == self.keys
        wrong = [
            r["id"] for r in rows if r["outcome"] == "succeeded" and r["prediction"]["embedding"] != self.answer(r)
        ]
        assert not wrong
        assert all(r["prediction"]["error"]["code"] for r in rows if r["outcome"] == "failed")
        readable = {str(p.relative_to(self.out)).split("/")[0] for p in self.out.rglob("*.parquet")}
        assert all(name.startswith("increment=") or name == "_gristmill" for name in readable)
        assert not list((self.out / "_gristmill").rglob("*.parquet"))

    def answer(self, row: dict[str, Any]) -> list[float]:
        """What an engine without faults answers: the checksum of a text's tokens."""
        return [float(sum(self._tokenizer.encode(row["text"]).ids[:48])), 0.0, 0.0, 0.0]

    @functools.cached_property
    def _tokenizer(self) -> Any:
        tokenizer = Tokenizer.from_file(str(self.path / "model/tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted((self.out / "_gristmill/runs").glob("*.json"))]


def until(ready: Callable[[], Any], *, seconds: float = 90) -> Any:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def committed(job: Job) -> int:
    return len(list(job.out.glob("_gristmill/marks/increment=*.json")))


def descendants(process: subprocess.Popen[str], part: str) -> list[psutil.Process]:
    """Processes below a driver whose command line holds a word."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(part in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    return lambda **options: Job(tmp_path, **options)


@pytest.mark.parametrize(("write", "codec"), [("the write", "snappy"), ("Spark's write", "lz4")])
def test_a_driver_that_is_killed_at_every_step_loses_nothing_and_scores_nothing_twice(
    make_job: Callable[..., Job], tmp_path: Path, write: str, codec: str
) -> None:
    conf = {"spark.sql.parquet.compression.codec": codec}  # workers write the one, Spark the other
    job = make_job(files=4, spark={"master": "local[2]", "conf": conf})
    steps = [
        (f"before {write}", 1, 0),
        (f"during {write}", 2, 1),
        ("before it is put in its place", 2, 3),  # the mark commits it
        ("after the commit", 1, 4),
        ("before the report", 1, 4),
    ]
    for number, (step, times, there) in enumerate(steps):
        fault = {"step": step, "times": times, "marker": str(tmp_path / f"killed-{number}")}
        job.run(code=-signal.SIGKILL, driver=fault)
        assert committed(job) == there, step
    before = {p: p.stat().st_mtime_ns for p in job.out.rglob("increment=*/*/*.parquet")}
    assert "warning" not in job.run().lower()
    assert before == {p: p.stat().st_mtime_ns for p in job.out.rglob("increment=*/*/*.parquet")}
    job.check()
    assert job.reports()[-1]["rows"] == 0
    told = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "report", str(job.out), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    totals = json.loads(told.stdout)
    assert (totals["rows"], totals["failed_by_code"]) == (240, {"empty_input": 4})
    assert [run["status"] for run in totals["runs"]] == ["not ended"] * 3 + ["completed"]  # two left no trace


def test_of_two_drivers_one_works_and_an_interrupt_leaves_what_is_committed(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(files=4, batching={"max_batch_tokens": 16}, spark={"master": "local[2,4]"})
    # An engine that dies in the middle, and a worker too.
    engine = {"sleep_s": 0.3, "way": "kill", "after": 10, "marker": str(tmp_path / "engine-killed")}
    first = job.start(engine=engine)
    until(lambda: (job.out / "_gristmill/lock.json").exists())
    second = job.start(engine=engine)
    until(lambda: (tmp_path / "engine-killed").exists())
    until(lambda: [p for d in descendants(first, "pyspark.daemon") for p in d.children()])[0].kill()
    told = second.communicate(timeout=120)[1]
    assert (second.returncode, told.count("is being worked on by process")) == (2, 1), told
    until(lambda: committed(job))
    began = time.monotonic()
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=60)[1]
    assert time.monotonic() - began < 20
    assert first.returncode == 130, told
    assert "Traceback" not in told
    assert job.reports()[-1]["status"] == "interrupted"
    there = committed(job)
    job.run()
    assert job.reports()[-1]["increments"] == 4 - there > 0
    job.check()


def test_a_terminated_driver_ends_within_seconds_whatever_it_does(make_job: Callable[..., Job]) -> None:
    job = make_job(files=1, batching={"max_batch_tokens": 16})
    process = job.start(engine={"sleep_s": 5.0})
    until(lambda: list((job.out / "_gristmill/writing").rglob("*.parts")))
    began = time.monotonic()
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert (process.returncode, time.monotonic() - began < 20) == (143, True), told
    assert [report["status"] for report in job.reports()] == ["interrupted"]
    assert job.rows() == []


@pytest.mark.parametrize(
    ("command", "step", "stays"),
    [
        ("score", "before the write", "nothing of this run was committed"),
        ("score", "before it is put in its place", "committed: 1 increment with 60 rows"),  # that needs no Java
        ("retry", "retry is kept, not shown", "nothing of this run was committed"),
    ],
)
def test_a_killed_java_ends_in_a_line_and_the_same_command_goes_on(
    command: str, step: str, stays: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(files=2)
    if command == "retry":
        job.run()
    told = job.run(command, code=5, driver={"step": step, "way": "kill java", "marker": str(tmp_path / "killed")})
    (error,) = [line for line in told.splitlines() if not line.startswith("Spark's log is in")]
    assert "Spark's Java process has ended or was killed" in error
    assert "spark.driver.memory" in error
    assert stays in error, error
    until(lambda: not running_engines(job.temporary))
    job.run(command)
    job.check()


@pytest.mark.parametrize(
    ("step", "stays"),
    [
        ("after the write", "nothing of this run was committed"),
        ("before it is put in its place", "committed: 1 increment with 60 rows"),
    ],
)
def test_a_commit_that_hangs_does_not_keep_a_driver_from_ending(
    step: str, stays: str, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job, marker = make_job(files=1), tmp_path / "hangs"
    process = job.start(driver={"step": step, "way": "hang", "marker": str(marker)})
    until(marker.exists)
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert (process.returncode, f"error: interrupted; {stays}" in told) == (143, True), told
    assert [report["status"] for report in job.reports()] == ["interrupted"]
    job.run()
    job.check()


def test_a_killed_executor_and_a_slow_attempt_that_is_overtaken_cost_no_row(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    conf = {
        "spark.ui.enabled": False,
        "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": LIGHT_JVM,
        "spark.speculation": True,
        "spark.speculation.interval": "100ms",
        "spark.speculation.multiplier": 1.1,
        "spark.speculation.quantile": 0.3,
        "spark.speculation.minTaskRuntime": "10ms",
    }
    spark = {"master": "local-cluster[2,1,1024]", "conf": conf}
    job = make_job(files=2, rows=400, batching={"max_batch_tokens": 64}, spark=spark)
    process = job.start(engine={"sleep_s": 0.02, "slow": str(tmp_path / "slow")})
    until(lambda: (tmp_path / "slow").exists())
    until(lambda: descendants(process, "CoarseGrainedExecutorBackend"))[0].kill()
    told = process.communicate(timeout=200)[1]
    assert process.returncode == 0, told
    job.check()


def test_a_full_disk_fails_the_job_and_room_lets_it_go_on(make_job: Callable[..., Job], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        job = make_job(files=3, rows=400, output={"path": str(disk / "out")})
        job.out = disk / "out"
        told = job.run(code=1)
        assert "No space left on device" in told
        assert "Traceback" not in told
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        job.run()
        job.check()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_deadline_commits_what_is_scored_and_a_retry_that_is_killed_scores_the_rest_once(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(files=3, rows=300, batching={"max_batch_tokens": 48, "window_rows": 32})
    told = job.run(code=4, engine={"sleep_s": 0.3}, driver={"deadline_in_s": 9})
    (report,) = job.reports()
    assert report["status"] == "expired"
    assert report["increments"] + report["left"]["files"] == 3
    assert report["left"]["files"]
    assert 0 < report["left"]["expired_rows"] == report["failed_by_code"]["expired"] < 300
    assert f"{report['left']['expired_rows']:,} expired rows" in told
    job.run()
    job.check()  # each row once, whatever its outcome

    fault = {"step": "retry is kept, not shown", "marker": str(tmp_path / "killed")}
    job.run("retry", "--only", "expired", code=-signal.SIGKILL, driver=fault)
    job.run("retry", "--only", "expired")
    rows = job.rows()
    succeeded = Counter(row["id"] for row in rows if row["outcome"] == "succeeded")
    assert job.keys - succeeded == Counter({0: 1, 100_000: 1, 200_000: 1})  # those without a text
    assert succeeded - job.keys == Counter()
    assert all(r["prediction"]["embedding"] == job.answer(r) for r in rows if r["outcome"] == "succeeded")
    assert {p.name for p in job.out.glob("increment=1*")} == {"increment=1000000"}
