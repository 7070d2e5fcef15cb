"""What befalls an engine while it writes: nothing is lost, and an answer is what it would have been."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine_faults import read_lines
from tests.engine_rows import Faults, codes_of, rows_of, undisturbed_rows
from tests.processes import running_engines
from tests.random_writers import save_writer
from tests.writers import ALPHABET
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec
from udfs.wire.journal import read_journal

pytestmark = pytest.mark.long

PROMPTS = [f"{number} {'red tea and green soil '[: 1 + number % 23]}" for number in range(140)]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("writer"))


def _spec(model: str, *, max_new_tokens: int) -> ScoreSpec:
    return make_spec(task="text-generation", model=model, precision="float32", max_new_tokens=max_new_tokens)


def _answers(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["text"], row["finish_reason"]) for row in rows]


def _kill_while_it_writes(top: Path) -> None:
    """Wait until an engine has written some answers and is writing others, and kill it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for home in top.glob("*/*/"):
            told = read_journal(home)
            if told.answered and told.suspects:
                (engine,) = running_engines(top)
                engine.send_signal(signal.SIGKILL)
                return
        time.sleep(0.001)


def test_an_engine_that_is_killed_while_it_writes_costs_no_answer(writer: str, faults: Faults, top: Path) -> None:
    starts, spec = faults(), _spec(writer, max_new_tokens=60)
    killer = threading.Thread(target=_kill_while_it_writes, args=(top,))
    killer.start()
    rows = rows_of(PROMPTS, spec)
    killer.join()
    assert codes_of(rows) == [None] * len(PROMPTS)
    assert _answers(rows) == _answers(undisturbed_rows(PROMPTS, spec))
    assert len(read_lines(starts)) == 2
    (fallen,) = (json.loads(path.read_text()) for path in top.glob("*/*/fallen-1.json"))
    assert fallen["suspects"]  # it was in the middle of them


@pytest.mark.parametrize("way", ["segfault", "device is lost"])
def test_a_prompt_that_kills_the_engine_fails_alone_while_others_are_written(
    writer: str, faults: Faults, way: str
) -> None:
    starts, spec = faults(poison=ALPHABET["~"], way=way), _spec(writer, max_new_tokens=8)
    prompts = [*PROMPTS[:20], "red ~ tea", *PROMPTS[20:40]]
    rows = rows_of(prompts, spec)
    assert codes_of(rows) == [None] * 20 + ["device_fault"] + [None] * 20
    assert _answers(rows[:20] + rows[21:]) == _answers(undisturbed_rows(PROMPTS[:40], spec))
    # Twice among others, once alone.
    assert len(read_lines(starts)) - 1 == 3
