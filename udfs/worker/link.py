"""One stream from a worker to an engine: how it opens, breaks, and is told from an engine that stands still."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from typing import Any

import pyarrow.flight as flight

from udfs.errors import EngineError, error_from_text
from udfs.executor import is_running
from udfs.wire.home import EngineId, Home
from udfs.wire.items import Items
from udfs.wire.journal import Fallen
from udfs.wire.messages import REQUEST, Answer, answer_from_arrow, items_to_arrow, pack_note, unpack_note
from udfs.worker.process import Ready, reach_engine, read_fallen

_BROKEN_LIMIT = 4  # connections to one engine that break though it lives
_LOOK_S = 2.0  # between two looks at whether the engine's watch still goes round
_END_S = 5.0  # for an engine that has answered all to end the stream
_STANDSTILL_S = 20.0  # beyond a micro-batch's time, in which the engine would have ended itself


class LinkBrokenError(Exception):
    """The engine is gone, or the way to it."""


def open_link(engine: EngineId, *, dead: Link | None = None) -> Link:
    """A way to the engine that is open; an engine that dies meanwhile is replaced as well.

    Raises:
        ModelError, EngineError: There is no way to one.
    """
    while True:
        link = Link(engine, dead=dead)
        try:
            link.open()
            return link
        except LinkBrokenError:
            dead = link


class Link:
    """One stream to one engine process. Answers come in the order of the parcels.

    Args:
        engine: Which one.
        dead: The link before, whose engine answers no more.
    """

    def __init__(self, engine: EngineId, *, dead: Link | None = None) -> None:
        self.client = uuid.uuid4().hex
        self.home: Home
        self.ready: Ready
        self.home, self.ready = reach_engine(engine, dead=dead.ready if dead else None)
        self.times_broken: int = dead.times_broken + 1 if dead and dead.ready == self.ready else 0
        if self.times_broken >= _BROKEN_LIMIT:
            raise EngineError(f"the connection to {self.ready.name} breaks again and again, though its process lives")
        self._timeout_s = engine.spec.batch_timeout_s + _STANDSTILL_S
        self._closed = threading.Event()
        self._writer: Any = None
        self._reader: Any = None
        self._flight: Any = None

    def open(self) -> None:
        """Begin the stream: the engine counts a client from now on.

        Raises:
            LinkBrokenError: The engine is gone; one that stands still is ended.
        """
        threading.Thread(target=self._watch, name="gristmill-watch", daemon=True).start()
        try:
            self._flight = flight.connect(f"grpc+unix://{self.ready.socket}")
            descriptor = flight.FlightDescriptor.for_command(self.client.encode())
            self._writer, self._reader = self._flight.do_exchange(descriptor)
            self._writer.begin(REQUEST)
        except (flight.FlightError, OSError) as error:
            self._closed.set()
            raise LinkBrokenError(str(error)) from error

    def send(self, number: int, items: Items, *, alone: bool) -> None:
        try:
            self._writer.write_with_metadata(items_to_arrow(items), pack_note(number=number, alone=int(alone)))
        except (flight.FlightError, OSError) as error:
            raise LinkBrokenError(str(error)) from error

    def receive(self) -> Answer:
        """The next answer.

        Raises:
            LinkBrokenError: The engine is gone.
            GristmillError: The engine's own error.
        """
        try:
            chunk = self._reader.read_chunk()
        except (flight.FlightError, OSError) as error:
            raise LinkBrokenError(str(error)) from error
        except StopIteration as error:
            raise LinkBrokenError("the engine ended the stream") from error
        note = unpack_note(chunk.app_metadata)
        if "error" in note:
            raise error_from_text(note["error"]) or EngineError(note["error"])
        return answer_from_arrow(note["number"], chunk.data)

    def close(self, *, done: bool) -> None:
        """Let go of the stream; the engine forgets what it has not answered."""
        self._closed.set()
        if self._writer is None:
            return
        with contextlib.suppress(flight.FlightError, OSError, StopIteration):
            if done:
                self._end()
            else:
                self._reader.cancel()
        with contextlib.suppress(flight.FlightError, OSError):
            self._flight.close()
        self._writer = None

    def _end(self) -> None:
        """Have the engine end the stream; one that stands still holds nobody up."""
        patience = threading.Timer(_END_S, self._reader.cancel)
        patience.daemon = True
        patience.start()
        try:
            self._writer.done_writing()
            self._reader.read_chunk()  # the end
        finally:
            patience.cancel()

    def interrupt(self) -> None:
        """Break the stream under whoever waits for it."""
        if self._reader is not None:
            self._reader.cancel()

    def fallen(self, dead: Link) -> Fallen:
        """What the engine of another link was doing when it died; nothing if it lives."""
        return Fallen(0, 0, {}) if dead.ready == self.ready else read_fallen(self.home, dead.ready.number)

    def _watch(self) -> None:
        """End an engine that stands still: one that is stopped from outside, or stuck in its driver, cannot itself."""
        seen, since = 0, time.monotonic()
        looked = since
        while not self._closed.wait(_LOOK_S):
            try:
                touched = (self.home / "alive").stat().st_mtime_ns
            except FileNotFoundError:
                continue
            now = time.monotonic()  # no step of the clock makes an engine old; nor a sleep, which stops this one too
            if touched != seen or now - looked > 4 * _LOOK_S:  # one that stood still itself knows nothing
                seen, since = touched, now
            looked = now
            if now - since > self._timeout_s:
                print(f"gristmill: engine {self.ready.name} stands still for {now - since:.0f} s", file=sys.stderr)
                if is_running(self.ready.pid, self.ready.started):
                    with contextlib.suppress(OSError):
                        os.kill(self.ready.pid, signal.SIGKILL)
                with contextlib.suppress(flight.FlightError, OSError):
                    self.interrupt()
                return
