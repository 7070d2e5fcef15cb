"""The engine's door: Arrow Flight over a Unix socket. Each client has one stream, parcels in, answers out."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback

import pyarrow as pa
import pyarrow.flight as flight

from udfs.engine.comparing import Comparer
from udfs.engine.parcels import Parcel, make_answer
from udfs.engine.scheduler import Scheduler
from udfs.errors import EngineError, GristmillError, as_exception, first_line
from udfs.wire.messages import answer_to_arrow, items_from_arrow, pack_note, unpack_note


class Server(flight.FlightServerBase):
    """Serves a scheduler's answers as soon as it is made.

    Args:
        socket: Path of the Unix socket.
        scheduler: Where parcels go.
        width: Of an item's outputs.
        comparer: Times items one at a time; None where nobody is to ask.
    """

    def __init__(self, socket: str, scheduler: Scheduler, *, width: int, comparer: Comparer | None = None) -> None:
        self._scheduler, self._width, self._retire = scheduler, width, False
        self._comparer = comparer
        self._lock = threading.Lock()
        self._clients, self._free_since = 0, time.monotonic()
        super().__init__(f"grpc+unix://{socket}")

    def free_s(self) -> float:
        """Seconds since the last client went away; 0 while there is one."""
        with self._lock:
            return 0.0 if self._clients else time.monotonic() - self._free_since

    def asked_to_retire(self) -> bool:
        """Somebody has wanted the memory since the last client came."""
        return self._retire

    def do_exchange(self, context: object, descriptor: object, reader: object, writer: object) -> None:
        """One client, from its first parcel to its last answer."""
        client = descriptor.command.decode()  # type: ignore[attr-defined]
        with self._lock:
            self._clients, self._retire = self._clients + 1, False
        unread: list[Exception] = []
        receiving = threading.Thread(target=self._receive, args=(client, reader, unread), daemon=True)
        receiving.start()
        try:
            self._answer(client, writer)
            if unread:
                raise unread[0]
        except BaseException as error:  # noqa: BLE001 - whatever it is, the client waits for a word
            self._tell(as_exception(error), writer)
        finally:
            self._scheduler.drop(client)
            receiving.join()  # the stream is freed when this function returns
            self._scheduler.forget(client)
            with self._lock:
                self._clients, self._free_since = self._clients - 1, time.monotonic()

    def do_action(self, context: object, action: object) -> list[bytes]:
        """`retire`: somebody wants the memory. Answers whether nobody is here who needs it.

        `compare`: `run` wants to know, within `budget_s`, what items take one at a time. Answers with their tokens and
        seconds; nothing where it has been asked before, or others want the engine.
        """
        if action.type == "compare":  # type: ignore[attr-defined]
            asked = json.loads(action.body.to_pybytes())  # type: ignore[attr-defined]
            timed = self._comparer.measure(asked["run"], budget_s=asked["budget_s"]) if self._comparer else []
            return [json.dumps([[one.tokens, one.seconds] for one in timed]).encode()]
        with self._lock:
            self._retire = self._retire or action.type == "retire"  # type: ignore[attr-defined]
            return [json.dumps(not self._clients).encode()]

    def _tell(self, error: Exception, writer: object) -> None:
        """Have the client know what went wrong; it hangs up then."""
        if isinstance(error, flight.FlightError | OSError):  # of the stream: it has hung up
            return
        if not isinstance(error, GristmillError):
            traceback.print_exception(error)
            error = EngineError(f"the engine cannot answer: {type(error).__name__}: {first_line(error)}")
        with contextlib.suppress(flight.FlightError, pa.ArrowException, OSError):  # it has hung up meanwhile
            writer.write_metadata(pack_note(error=str(error)))  # type: ignore[attr-defined]

    def _receive(self, client: str, reader: object, unread: list[Exception]) -> None:
        try:
            for chunk in reader:  # type: ignore[attr-defined]
                note = unpack_note(chunk.app_metadata)
                items = items_from_arrow(chunk.data)
                self._scheduler.put(Parcel(client, note["number"], items, alone=bool(note["alone"])))
        except (flight.FlightError, pa.ArrowException, OSError):  # the client is gone
            self._scheduler.drop(client)
        except BaseException as error:  # noqa: BLE001 - nothing that came after it would be answered
            unread.append(as_exception(error))
            self._scheduler.drop(client)
        finally:
            self._scheduler.end(client)

    def _answer(self, client: str, writer: object) -> None:
        begun = False
        for parcel in self._scheduler.answers(client):
            batch = answer_to_arrow(make_answer(parcel, self._width, per_token=self._scheduler.per_token))
            if not begun:
                writer.begin(batch.schema)  # type: ignore[attr-defined]
                begun = True
            writer.write_with_metadata(batch, pack_note(number=parcel.number))  # type: ignore[attr-defined]
