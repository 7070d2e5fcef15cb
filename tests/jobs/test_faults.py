"""Real jobs, in processes of their own, that are killed, starved and interrupted; in the end nothing is lost or twice.

The oracle: keys of succeeded rows plus keys of failed rows are the keys of the input, as multisets; answers are those
of a run without faults; nothing else can be read in the output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.job_faults import plant
from tests.models import WORDS, make_encoder

pytestmark = pytest.mark.cluster


class Job:
    """A job on a few small files, run again and again on one output.

    Args:
        path: Where all of it lies.
        files: Input files; each is an increment.
        rows: Rows of a file. The first of each has no text and fails.
        sections: More of the job's YAML.
    """

    def __init__(self, path: Path, *, files: int = 4, rows: int = 60, **sections: dict[str, Any]) -> None:
        self.path, self.out = path, path / "out"
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
                "PYTHONPATH": f"{site}:{ROOT}",
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
        wrong = [r["id"] for r in rows if r["outcome"] == "succeeded" and r["prediction"]["embedding"] != answer(r)]
        assert not wrong
        assert all(r["prediction"]["error"]["code"] for r in rows if r["outcome"] == "failed")
        readable = {str(p.relative_to(self.out)).split("/")[0] for p in self.out.rglob("*.parquet")}
        assert all(name.startswith("increment=") or name == "_gristmill" for name in readable)
        assert not list((self.out / "_gristmill").rglob("writing/**/*.parquet"))

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted((self.out / "_gristmill/runs").glob("*.json"))]


_TOKENIZER: dict[str, Any] = {}


def answer(row: dict[str, Any]) -> list[float]:
    """What an engine without faults answers: the checksum of a text's tokens."""
    from tests.models import _make_tokenizer

    tokenizer = _TOKENIZER.setdefault("it", _make_tokenizer(pairs_have_types=True))
    return [float(sum(tokenizer.encode(row["text"]).ids[:48])), 0.0, 0.0, 0.0]


def until(ready: Callable[[], Any], *, seconds: float = 90) -> Any:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def committed(job: Job) -> int:
    return len(list(job.out.glob("increment=*/_increment.json")))


def descendants(process: subprocess.Popen[str], part: str) -> list[psutil.Process]:
    """Processes below a driver whose command line holds a word."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(part in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    yield lambda **options: Job(tmp_path, **options)


def test_a_driver_that_is_killed_at_every_step_loses_nothing_and_scores_nothing_twice(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(files=5)
    steps = [
        ("before the write", 1, 0),
        ("during the write", 2, 1),
        ("after the write", 2, 2),
        ("before it is put in its place", 1, 2),
        ("after the commit", 2, 4),
        ("before the report", 1, 5),
    ]
    for number, (step, times, there) in enumerate(steps):
        fault = {"step": step, "times": times, "marker": str(tmp_path / f"killed-{number}")}
        job.run(code=-signal.SIGKILL, driver=fault)
        assert committed(job) == there, step
    before = {p: p.stat().st_mtime_ns for p in job.out.rglob("increment=*/*/*.parquet")}
    job.run()
    assert before == {p: p.stat().st_mtime_ns for p in job.out.rglob("increment=*/*/*.parquet")}
    job.check()
    assert job.reports()[-1]["rows"] == 0
    told = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "report", str(job.out), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    totals = json.loads(told.stdout)
    assert (totals["rows"], totals["failed_by_code"]) == (300, {"empty_input": 5})
    assert len(totals["runs"]) == 5  # those that committed something, or ended
