"""What a driver holds as it sends a table by batches: `python -m tests.hosted_memory FOLDER 10000 100000`."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.hosted_soak import start, write_input, write_job
from tests.provider import Pace, Provider, serve_provider

_EVERY_S = 0.2


def measure(folder: Path, *, engine: str, rows: int) -> tuple[Counter[str], float]:
    """The most MB that the driver's Python and Java held while they sent so many rows, and the seconds.

    Raises:
        AssertionError: The job did not score all rows.
    """
    write_input(folder, rows, files=10)
    with serve_provider(pace=Pace(polls=1)) as provider:
        _write_job(folder, provider, engine)
        begun = time.monotonic()
        driver = start(folder, provider)
        most = _watch(driver)
        assert driver.returncode == 0, (folder / "log").read_text()[-3000:]
        (report,) = (folder / "out/_gristmill/runs").glob("*.json")
        assert json.loads(report.read_text())["succeeded"] == rows
        return most, time.monotonic() - begun


def _write_job(folder: Path, provider: Provider, engine: str) -> None:
    """A job as its user writes it: the increments and what is in flight are gristmill's choice."""
    write_job(folder, provider, engine, in_flight=0)
    job = json.loads((folder / "job.yaml").read_text())
    del job["input"]["increment_bytes"], job["score"]["endpoint"]["max_in_flight_tokens"]
    (folder / "job.yaml").write_text(json.dumps(job))


def _watch(driver: subprocess.Popen[bytes]) -> Counter[str]:
    most: Counter[str] = Counter()
    known = psutil.Process(driver.pid)
    while driver.poll() is None:
        try:
            java = sum(child.memory_info().rss for child in known.children() if child.name() == "java")
            held = {"python": known.memory_info().rss, "java": java}
        except psutil.Error:
            held = {}
        most |= Counter({name: rss // 2**20 for name, rss in held.items()})
        time.sleep(_EVERY_S)
    return most


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int, nargs="+")
    given = parser.parse_args()
    for engine in ("openai-batch", "anthropic-batch"):
        for rows in given.rows:
            most, seconds = measure(given.folder / f"{engine}-{rows}", engine=engine, rows=rows)
            told = ", ".join(f"{name} {mb} MB" for name, mb in sorted(most.items()))
            print(f"{engine}: {rows:,} rows, {seconds:.0f} s, {told}", flush=True)
