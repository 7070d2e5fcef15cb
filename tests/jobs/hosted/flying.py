"""Requests on their way to the provider of the tests, without Spark: what Spark's tasks would write is written here.

As a process of its own that a test kills: `python -m tests.jobs.hosted.flying FOLDER ENGINE URL FAULT`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.folder import Folder
from jobs.hosted.flight import Flight, Landed, Standing, Tempo
from jobs.hosted.ledger import Asked, Ledger
from jobs.hosted.money import Purse
from jobs.hosted.provider import Provider
from jobs.hosted.services import open_provider
from tests.job_faults import change_driver
from udfs.hosted.endpoint import Endpoint

ENGINES = ("openai-batch", "anthropic-batch")


def make_body(engine: str, number: int, **more: Any) -> dict[str, Any]:
    """A request, as an executor writes it."""
    longest = "max_tokens" if engine == "anthropic-batch" else "max_completion_tokens"
    asked = [{"role": "user", "content": f"question {number}"}]
    return {"model": "writer", "messages": asked, longest: 50, **more}


def write_asked(
    folder: Folder, bodies: list[dict[str, Any]], *, files: int = 3, buckets: int = 4, tokens: int = 10
) -> Ledger:
    """A ledger whose requests are all written; each is asked once, by rows of one bucket."""
    ledger = Ledger(folder, "_gristmill", 0)
    folder.make(f"{ledger.path}/asked")
    lines = []
    for number, body in enumerate(bodies):
        told = json.dumps(body, separators=(",", ":"))
        id_ = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        lines.append(f"{id_}\t{tokens}\t1\t{number % buckets}\t{told}\n".encode())
    for number in range(files):
        Path(folder.path, ledger.path, f"asked/part-{number}.txt").write_bytes(b"".join(lines[number::files]))
    ledger.keep_asked(
        about={}, lines=len(lines), tokens=tokens * len(lines), made=len(lines), made_tokens=tokens * len(lines)
    )
    return ledger


def open_at(url: str, key: str, engine: str) -> Provider:
    """The official client of an engine's provider."""
    base = f"{url}/v1" if engine == "openai-batch" else url
    endpoint = Endpoint(engine=engine, base_url=base, api_key_env="TEST_KEY")  # type: ignore[arg-type]
    return open_provider(endpoint, key, model="writer", path="/chat/completions")


def fly(
    ledger: Ledger,
    provider: Provider,
    *,
    tempo: Tempo | None = None,
    purse: Purse | None = None,
    check: Callable[[], None] = lambda: None,
    left_s: Callable[[], float | None] = lambda: None,
    tell: Callable[[Standing], None] = lambda _: None,
) -> Landed:
    """See an increment's batches to their end."""
    flight = Flight(
        ledger,
        read_asked(ledger),
        provider,
        tempo=tempo or Tempo(max_batches=4, max_tokens=None, poll_s=0.02, listed_s=0.4),
        purse=purse or Purse(),
        check=check,
        left_s=left_s,
        tell=tell,
    )
    return flight.fly()


def read_asked(ledger: Ledger) -> Asked:
    asked = ledger.asked()
    if asked is None:
        raise ValueError("nothing is asked")
    return asked


def read_replies(folder: Folder, ledger: Ledger) -> dict[str, Any]:
    """Replies by their ids.

    Raises:
        ValueError: A request has several.
    """
    found: dict[str, Any] = {}
    for line in _lines(folder, ledger):
        reply = json.loads(line.split(b"\t", 1)[1])
        id_ = reply["custom_id"][-32:]
        if id_ in found:
            raise ValueError(f"{id_} has several replies")
        found[id_] = reply
    return found


def _lines(folder: Folder, ledger: Ledger) -> Iterator[bytes]:
    for path in sorted(Path(folder.path, ledger.path, "results").glob("*")):
        yield from path.read_bytes().split(b"\n")[:-1]


if __name__ == "__main__":
    path, engine, url, fault = sys.argv[1:]
    change_driver(**json.loads(fault))
    tempo = Tempo(max_batches=3, max_tokens=160, poll_s=0.02, listed_s=0.4)
    print(fly(Ledger(Folder(path), "_gristmill", 0), open_at(url, os.environ["TEST_KEY"], engine), tempo=tempo))
