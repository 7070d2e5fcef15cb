"""A job by a provider's batches, its driver killed again and again: `python -m tests.hosted_soak FOLDER`.

Whatever happened: each row is there once, answers are those without faults, no request was paid twice, no key is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from tests.conftest import LIGHT_JVM, ROOT
from tests.provider import Faults, Pace, Provider, serve_provider
from tests.provider.answers import chat, message

KEY = "GRISTMILL_SOAK_KEY"
_SHARE = 0.02
_OF_ROWS = ("errored", "bad_request", "context_overflow", "no_status", "canceled", "malformed", "missing", "refusal")


def write_input(folder: Path, rows: int, files: int) -> Counter[int]:
    """Files of rows, a tenth of which repeat a title of their file; returns their keys."""
    (folder / "in").mkdir(parents=True)
    keys, each = Counter[int](), -(-rows // files)
    for number in range(files):
        own = range(number * each, min(rows, (number + 1) * each))
        titles = {key: f"thing {key if key % 10 else own[0] + 1}" for key in own}
        told = (json.dumps({"id": key, "title": title}) + "\n" for key, title in titles.items())
        (folder / f"in/part-{number}.jsonl").write_text("".join(told))
        keys.update(own)
    return keys


def write_job(folder: Path, provider: Provider, engine: str, in_flight: int) -> None:
    """A job whose files are an increment each."""
    base = provider.url if engine == "anthropic-batch" else f"{provider.url}/v1"
    endpoint = {"base_url": base, "api_key_env": KEY, "poll_s": 0.05, "max_in_flight_tokens": in_flight}
    job = {
        "input": {"path": str(folder / "in"), "format": "json", "increment_bytes": 1, "key": ["id"]},
        "output": {"path": str(folder / "out")},
        "score": {
            "task": "text-generation",
            "engine": engine,
            "model": "writer",
            "prompt": "Write about {{ title }}.",
            "max_new_tokens": 40,
            "endpoint": endpoint,
        },
        "limits": {"max_error_rate": 1.0},
        "spark": {"master": "local[2]"},
    }
    (folder / "job.yaml").write_text(json.dumps(job))


def start(folder: Path, provider: Provider) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(folder / "job.yaml")]
    environment = {**os.environ, KEY: provider.key, "PYTHONPATH": str(ROOT), "SPARK_SUBMIT_OPTS": LIGHT_JVM}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def soak(folder: Path, *, seed: int, rows: int = 20_000, files: int = 4, kills: int = 4) -> str:
    """Run, kill, run again until all is scored, and look at what came of it.

    Raises:
        AssertionError: A row is lost or twice, an answer is another, a request was paid twice, a key is left.
    """
    chance, begun = random.Random(seed), time.monotonic()
    engine = chance.choice(["openai-batch", "anthropic-batch"])
    keys = write_input(folder, rows, files)
    faults = replace(Faults.storm(seed, _SHARE), listed_after_s=0.2)
    with serve_provider(faults=faults, pace=Pace(polls=2)) as provider:
        write_job(folder, provider, engine, in_flight=rows * 2)
        for _ in range(kills):
            process = start(folder, provider)
            wanted = provider.batches + chance.randint(0, 4)
            while process.poll() is None and provider.batches < wanted:
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 3))
            process.kill()
            process.wait()
        ended = start(folder, provider).wait()
        assert ended in (0, 4), (folder / "log").read_text()[-3000:]  # 4: a batch of the storm's expired
        check(folder, provider, engine, keys)
        return f"seed {seed}, {engine}: {rows} rows, {provider.batches} batches, {time.monotonic() - begun:.0f} s"


def check(folder: Path, provider: Provider, engine: str, keys: Counter[int]) -> None:
    """What has to hold in the end."""
    found = ds.dataset(folder / "out", partitioning="hive").to_table().to_pylist()
    assert Counter(row["id"] for row in found) == keys
    wrong = [row["id"] for row in found if row["outcome"] == "succeeded" and not _is_right(row, engine)]
    assert not wrong, wrong[:10]
    assert sum(row["outcome"] == "succeeded" for row in found) > 0.4 * len(found)
    assert provider.asked_twice == 0
    assert provider.asked == provider.distinct == len({row["title"] for row in found})
    left = [path for path in folder.rglob("*") if path.is_file() and provider.key.encode() in path.read_bytes()]
    assert not left, left


def _is_right(row: dict[str, Any], engine: str) -> bool:
    """The answer is the one that the provider gives to that question; one that a fault has cut begins alike."""
    asked = {"model": "writer", "messages": [{"role": "user", "content": f"Write about {row['title']}."}]}
    if engine == "anthropic-batch":
        (content,) = message({**asked, "max_tokens": 40})["content"]
        whole = content["text"]
    else:
        whole = chat({**asked, "max_completion_tokens": 40, "temperature": 0.0})["choices"][0]["message"]["content"]
    text, finish = row["prediction"]["text"], row["prediction"]["finish_reason"]
    return bool(text == whole or (finish == "length" and whole.replace("\u2028", " ").startswith(text[:3])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0:3")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=4)
    given = parser.parse_args()
    first, last = map(int, given.seeds.split(":"))
    for number in range(first, last):
        print(soak(given.folder / str(number), seed=number, rows=given.rows, kills=given.kills), flush=True)
