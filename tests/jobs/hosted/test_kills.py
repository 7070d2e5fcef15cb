"""A driver that is killed at every step of a batch, with a provider that outlives it: all is paid once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.folder import Folder
from tests.conftest import ROOT
from tests.job_faults import BATCH_STEPS
from tests.jobs.hosted.flying import ENGINES, make_body, read_replies, write_asked
from tests.provider import Faults, Pace, Provider, serve_provider

pytestmark = pytest.mark.long
_REQUESTS = 24
_STEPS = [step for step in BATCH_STEPS if step != "requests are written, not noted"]
_OTHERS = {"openai-batch": "before Anthropic's create", "anthropic-batch": "before OpenAI's create"}
_CASES = [(engine, step) for engine in ENGINES for step in _STEPS if step != _OTHERS[engine]]


def run(folder: Path, engine: str, provider: Provider, fault: dict[str, object]) -> int:
    """Fly in a process of its own; returns how it ended."""
    command = [sys.executable, "-m", "tests.jobs.hosted.flying", str(folder), engine, provider.url, json.dumps(fault)]
    environment = {**os.environ, "TEST_KEY": provider.key, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=120).returncode


@pytest.mark.parametrize(("engine", "step"), _CASES)
def test_a_driver_that_is_killed_anywhere_pays_no_request_twice(tmp_path: Path, engine: str, step: str) -> None:
    folder = Folder(str(tmp_path / "out"))
    ledger = write_asked(folder, [make_body(engine, number) for number in range(_REQUESTS)])
    with serve_provider(pace=Pace(polls=1)) as provider:
        for times in (1, 3):
            fault = {"step": step, "times": times, "marker": str(tmp_path / f"killed-{times}")}
            ended = run(tmp_path / "out", engine, provider, fault)
            assert ended == -signal.SIGKILL or (times > 1 and ended == 0), ended
        assert run(tmp_path / "out", engine, provider, {}) == 0
        assert len(read_replies(folder, ledger)) == _REQUESTS
        assert (provider.asked, provider.distinct, provider.asked_twice) == (_REQUESTS, _REQUESTS, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lost_reply_and_a_kill_before_it_is_looked_up_pay_no_request_twice(tmp_path: Path, engine: str) -> None:
    folder = Folder(str(tmp_path / "out"))
    ledger = write_asked(folder, [make_body(engine, number) for number in range(_REQUESTS)])
    with serve_provider(pace=Pace(polls=1), faults=Faults(seed=4, lost_reply=0.6, at_most_a_row=2)) as provider:
        for times in range(1, 5):
            fault = {"step": "after the intent", "times": times, "marker": str(tmp_path / f"killed-{times}")}
            run(tmp_path / "out", engine, provider, fault)
        assert run(tmp_path / "out", engine, provider, {}) == 0
        assert len(read_replies(folder, ledger)) == _REQUESTS
        assert (provider.asked, provider.asked_twice) == (_REQUESTS, 0)


@pytest.mark.parametrize("seed", range(int(os.environ.get("GRISTMILL_FLIGHT_SEEDS", "2"))))
@pytest.mark.parametrize("engine", ENGINES)
def test_a_storm_and_kills_at_random_pay_no_request_twice(tmp_path: Path, engine: str, seed: int) -> None:
    folder, chance = Folder(str(tmp_path / "out")), random.Random(seed)
    ledger = write_asked(folder, [make_body(engine, number) for number in range(4 * _REQUESTS)])
    faults = replace(Faults.storm(seed, 0.03), listed_after_s=0.1)
    with serve_provider(pace=Pace(polls=1), faults=faults) as provider:
        for number in range(3):
            step = chance.choice([step for step in _STEPS if step != _OTHERS[engine]])
            fault = {"step": step, "times": chance.randint(1, 8), "marker": str(tmp_path / f"killed-{number}")}
            assert run(tmp_path / "out", engine, provider, fault) in (0, -signal.SIGKILL)
        assert run(tmp_path / "out", engine, provider, {}) == 0
        assert len(read_replies(folder, ledger)) > 3 * _REQUESTS
        assert (provider.asked, provider.asked_twice) == (4 * _REQUESTS, 0)
        left = [path for path in tmp_path.rglob("*") if path.is_file() and provider.key.encode() in path.read_bytes()]
        assert left == []
