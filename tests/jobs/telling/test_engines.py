"""What engines tell in their homes, added up over those that are gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.telling import engines
from jobs.telling.engines import EngineLook
from udfs.wire.home import Home, hold

NAME = "here:1:cpu/float32/packed"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An engine's home, and its engine lives."""
    made = Home(tmp_path / "engine")
    made.path.mkdir()
    monkeypatch.setattr(engines, "find_near", lambda: [made] if (made / "request.json").exists() else [])
    held = hold(made / "alive")
    yield made
    os.close(held)


def _start(home: Home, number: int) -> None:
    home.write("request.json", {"number": number})


def _tell(home: Home, number: int, done: int, **waiting: Any) -> None:
    counts = dict.fromkeys(("batches", "batched", "items", "tokens", "padded_tokens", "failed"), done)
    waits = {"items": 0, "tokens": 0, "running": 1, "budget": 1024, **waiting}
    home.write("status.json", {"name": NAME, "number": number, **counts, "waiting": waits, "gpu": None})


def test_nothing_is_told_where_no_engine_was_seen(home: Home) -> None:
    assert EngineLook().look() is None


def test_engines_that_died_keep_what_they_did(home: Home) -> None:
    look = EngineLook()
    _start(home, 1)
    _tell(home, 1, 10, items=4)
    told = look.look()
    assert told is not None
    assert (told.running, told.starts, told.deaths, told.items, told.waiting_items) == (1, 1, 0, 10, 4)
    home.write("fallen-1.json", {})
    _start(home, 2)
    told = look.look()
    assert told is not None
    assert (told.running, told.starts, told.deaths, told.items, told.waiting_items) == (0, 2, 1, 10, 0)
    _tell(home, 2, 3)
    told = look.look()
    assert told is not None
    assert (told.running, told.items, told.budget) == (1, 13, {NAME: 1024})
    for file in home.path.glob("*.json"):
        file.unlink()  # it has ended
    told = look.look()
    assert told is not None
    assert (told.running, told.starts, told.deaths, told.items) == (0, 2, 1, 13)


def test_what_was_done_before_the_run_is_not_its_own(home: Home) -> None:
    _start(home, 3)
    _tell(home, 3, 50)
    look = EngineLook()
    _tell(home, 3, 70)
    told = look.look()
    assert told is not None
    assert (told.starts, told.items) == (0, 20)


def test_a_torn_file_is_no_reason_to_end(home: Home) -> None:
    look = EngineLook()
    _start(home, 1)
    (home / "status.json").write_text(json.dumps({"name": NAME})[:5])
    told = look.look()
    assert told is not None
    assert (told.running, told.starts) == (0, 1)
