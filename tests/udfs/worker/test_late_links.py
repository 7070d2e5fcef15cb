"""The deadline, and links that open when nobody waits for them any more."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from udfs.executor import executor_of
from udfs.spec import ScoreSpec
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker import client as client_module
from udfs.worker.client import EngineClient
from udfs.worker.link import LinkBrokenError
from udfs.worker.outputs import LATE

ITEMS = Items(np.arange(4, dtype=np.int32), np.array([0, 2, 4]))


class _Link:
    """A link that breaks as soon as it is used."""

    def __init__(self, home: Any) -> None:
        self.home, self.closed = home, threading.Event()
        self.ready = type("Ready", (), {"name": "e", "parcel_tokens": 9})

    def send(self, *_: Any, **__: Any) -> None:
        raise LinkBrokenError("gone")

    def close(self, *, done: bool) -> None:
        self.closed.set()


def test_the_deadline_holds_while_an_engine_is_replaced(
    spec: ScoreSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, late = threading.Event(), _Link(tmp_path)

    def open_link(_: EngineId, *, dead: Any = None) -> _Link:
        if dead is None:
            return _Link(tmp_path)
        release.wait(30)  # a large model loads
        return late

    monkeypatch.setattr(client_module, "open_link", open_link)
    monkeypatch.setattr(client_module, "find_known_faults", lambda *_: np.empty(0, dtype=np.int64))
    began = time.monotonic()
    with EngineClient(EngineId(replace(spec, deadline=time.time() + 1), None, executor_of())) as client:
        outputs = client.collect(client.submit(ITEMS))
    assert outputs.faults.tolist() == [LATE, LATE]
    assert time.monotonic() - began < 10
    release.set()
    assert late.closed.wait(10)


def test_a_link_that_opens_after_its_client_has_gone_is_closed(
    spec: ScoreSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, late = threading.Event(), _Link(tmp_path)

    def open_link(_: EngineId, *, dead: Any = None) -> _Link:
        release.wait(30)
        return late

    monkeypatch.setattr(client_module, "open_link", open_link)
    with EngineClient(EngineId(spec, None, executor_of())):
        pass
    assert not late.closed.is_set()
    release.set()
    assert late.closed.wait(10)
