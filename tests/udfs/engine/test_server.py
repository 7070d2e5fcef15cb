"""The engine's door: whatever goes wrong behind it, who waits is told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.flight as flight
import pytest

from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler
from udfs.engine.server import Server
from udfs.wire.items import Items
from udfs.wire.messages import REQUEST, items_to_arrow, pack_note, unpack_note


class Panic(BaseException):
    """What Rust's panics are in Python: no Exception."""


class _Odd(Scheduler):
    """Raises what nobody foresees, as it answers."""

    raises: BaseException

    def answers(self, client: str) -> Iterator[Parcel]:
        raise self.raises


@pytest.fixture
def socket() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:  # pytest's own are too deep for a socket's path
        yield str(Path(folder) / "s")


def _open(socket: str) -> tuple[Any, Any]:
    descriptor = flight.FlightDescriptor.for_command(b"me")
    writer, reader = flight.connect(f"grpc+unix://{socket}").do_exchange(
        descriptor, options=flight.FlightCallOptions(timeout=20)
    )
    writer.begin(REQUEST)
    return writer, reader


def _scheduler(kind: type[Scheduler]) -> Scheduler:
    return kind(Budget(64, 1), pad_multiple=1, lanes=1)


@pytest.mark.parametrize(
    ("raises", "told"), [(ValueError("odd numbers"), "ValueError"), (Panic("odd numbers"), "PanicError: Panic")]
)
def test_an_error_that_is_not_ours_reaches_the_client_too(
    socket: str, raises: BaseException, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Odd, "raises", raises, raising=False)
    server = Server(socket, _scheduler(_Odd), width=4)
    _, reader = _open(socket)
    note = unpack_note(reader.read_chunk().app_metadata)
    assert note["error"] == f"[engine] the engine cannot answer: {told}: odd numbers"
    reader.cancel()
    server.shutdown()


def test_a_parcel_that_cannot_be_read_is_told(socket: str) -> None:
    server = Server(socket, _scheduler(Scheduler), width=4)
    writer, reader = _open(socket)
    items = Items(np.array([1, 2], dtype=np.int32), np.array([0, 2]))
    writer.write_with_metadata(items_to_arrow(items), pack_note(wrong=1))
    note = unpack_note(reader.read_chunk().app_metadata)
    assert "KeyError" in note["error"]
    reader.cancel()
    server.shutdown()
