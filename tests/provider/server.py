"""The server on loopback: sockets, keys, and the calls that it lets through to a dialect."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from werkzeug.exceptions import ClientDisconnected
from werkzeug.formparser import parse_form_data

from tests.provider import anthropic_dialect, openai_dialect
from tests.provider.calls import Call, Refusal, Reply
from tests.provider.faults import Faults, Limits, Pace
from tests.provider.running import requests_of
from tests.provider.state import State
from tests.provider.weather import HungUp, at_once, befall_after, befall_before, is_live, kind_of, sizes_of

_HIDDEN = "<key>"


class Provider:
    """A provider that tests talk to; what it was asked to do is counted.

    `faults`, `limits` and `pace` may be changed while it runs; a new pace holds for batches that are under way too.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.key = f"sk-test-{secrets.token_hex(16)}"
        self._place = socket.socket()  # keeps the port, that no caller be given it while the server restarts
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.redirect_to: str | None = None  # an address that calls are sent on to
        self.redirect_only = ""  # a kind of call, as in "GET /files/*/content"; all without
        self.results_base: str | None = None  # the address in Anthropic's results_url, if not the provider's own
        self._server: _Server | None = None
        self._turning = threading.Lock()
        self.closed = False
        self.start()

    @property
    def url(self) -> str:
        """Anthropic's base address; OpenAI's clients take it too, with or without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> int:
        """Requests of batches that were run."""
        return self.state.asked

    @property
    def asked_by_id(self) -> Counter[str]:
        """The same by custom id, read from the batches anew each time."""
        run = [batch for batch in self.state.batches.values() if not batch.problems]
        return Counter(request["custom_id"] for batch in run for request in requests_of(batch))

    @property
    def distinct(self) -> int:
        """Different bodies among them."""
        return len(self.state.times_asked)

    @property
    def failed_by_itself(self) -> int:
        """Requests that were run and brought no good answer, by faults or for what they asked."""
        return sum(self.state.failures.values())

    @property
    def failures(self) -> dict[str, int]:
        """The same by fault."""
        return dict(self.state.failures)

    @property
    def asked_twice(self) -> int:
        """Requests that were asked in a batch although the same one was under way or had its answer: paid twice."""
        return self.state.asked_twice

    @property
    def canceled(self) -> int:
        """Requests that a client's cancel has left undone."""
        return self.state.canceled

    @property
    def batches(self) -> int:
        """Batches that were made, those that failed as a whole among them."""
        return len(self.state.batches)

    @property
    def live_calls(self) -> int:
        return self.state.live_calls

    @property
    def refused_live(self) -> int:
        """Live calls that were too many for the rates of `limits`."""
        return self.state.refused_live

    @property
    def most_live_at_once(self) -> int:
        return self.state.most_live_at_once

    @property
    def calls(self) -> dict[str, int]:
        """How often each kind of call was made, as in "POST /batches"."""
        return dict(self.state.calls)

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of the latest calls; where one had the key, it has <key>."""
        return list(self.state.headers)

    @property
    def pace(self) -> Pace:
        return self.state.pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self.state.pace = pace

    @property
    def limits(self) -> Limits:
        return self.state.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.state.limits = limits

    @property
    def faults(self) -> Faults:
        return self.state.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.state.faults = faults

    def start(self) -> None:
        """Listen."""
        self._server = _Server(("127.0.0.1", self.port), self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Hang up on everyone; what the provider knows stays."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None

    def restart(self) -> None:
        """Hang up on everyone, and listen again."""
        with self._turning:
            self.stop()
            if not self.closed:
                self.start()

    def close(self) -> None:
        with self._turning:
            self.closed = True
            self.stop()
            self._place.close()


@contextlib.contextmanager
def serve_provider(
    *,
    faults: Faults | None = None,
    seed: int | None = None,
    limits: Limits | None = None,
    pace: Pace | None = None,
    models: Collection[str] | None = None,
    without: Collection[str] = (),
) -> Iterator[Provider]:
    """Run a provider on a free port of loopback.

    Args:
        faults: What goes wrong; nothing does without.
        seed: The seed of `faults`, in place of its own.
        limits: What it takes; OpenAI's without.
        pace: When its batches are done; at the first look without.
        models: The names that it knows; without, all.
        without: Parameters that its models do not take, as newer ones no `temperature`.
    """
    chosen = faults or Faults()
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    folder = Path(tempfile.mkdtemp(prefix="gm-provider-"))
    state = State(
        folder,
        faults=chosen,
        limits=limits or Limits(),
        pace=pace or Pace(),
        models=None if models is None else frozenset(models),
        without=frozenset(without),
    )
    provider = Provider(state)
    try:
        yield provider
    finally:
        provider.close()
        shutil.rmtree(folder, ignore_errors=True)
    if provider.state.bugs:
        raise provider.state.bugs[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], provider: Provider) -> None:
        self.provider = provider
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what the provider itself does wrong; a client that went away is nobody's error."""
        found = sys.exc_info()[1]
        gone = (ConnectionError, TimeoutError, ClientDisconnected)
        if found and not self.provider.closed and not isinstance(found, gone):
            traceback.print_exception(found)
            self.provider.state.bugs.append(found)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        call = self._read()
        self._note(call)
        dialect = _dialect(call)
        try:
            reply = self._let_through(call, dialect)
            self._send(reply, call)
        except Refusal as refusal:
            html = refusal.text.startswith("<html>")  # of something before the provider, that speaks no dialect
            self._send(Reply(refusal.text.encode(), refusal.status) if html else dialect.refuse(refusal), call)
        except HungUp:
            self.close_connection = True
            self._hang_up()
        finally:
            if call.upload:
                call.upload.unlink(missing_ok=True)  # it was moved if it was taken

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Call:
        """The whole of a call; what it uploads goes to a file."""
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length") or 0)
        raw, form, upload, filename = b"", {}, None, ""
        if headers.get("content-type", "").startswith("multipart/"):
            asked = {"CONTENT_TYPE": headers["content-type"], "CONTENT_LENGTH": str(length), "REQUEST_METHOD": "POST"}
            _, fields, files = parse_form_data({**asked, "wsgi.input": self.rfile})
            form = fields.to_dict()
            if found := files.get("file"):
                state = self.server.provider.state
                upload, filename = state.folder / state.new_id("upload-"), found.filename or "upload"
                found.save(upload)
        else:
            raw = self.rfile.read(length)
        path = [part for part in parts.path.split("/") if part]
        return Call(
            method=self.command,
            path=tuple(path[1:] if path[:1] == ["v1"] else path),
            query=dict(parse_qsl(parts.query)),
            headers=headers,
            raw=raw,
            form=form,
            upload=upload,
            filename=filename,
            base=self.server.provider.results_base or self.server.provider.url,
        )

    def _note(self, call: Call) -> None:
        provider = self.server.provider
        hidden = {name: value.replace(provider.key, _HIDDEN) for name, value in call.headers.items()}
        with provider.state.lock:
            provider.state.headers.append(hidden)
            provider.state.calls[kind_of(call)] += 1

    def _let_through(self, call: Call, dialect: Any) -> Reply:
        provider = self.server.provider
        if provider.redirect_to and provider.redirect_only in ("", kind_of(call)):
            return Reply({}, 307, {"Location": provider.redirect_to + self.path})
        given = call.headers.get("x-api-key") or call.headers.get("authorization", "").removeprefix("Bearer ")
        if given != provider.key:
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        with at_once(provider.state, call) if is_live(call) else contextlib.nullcontext():
            befall_before(provider, call)
            reply = dialect.answer(provider.state, call)
        befall_after(provider, call)
        return reply

    def _send(self, reply: Reply, call: Call) -> None:
        """Send a reply; a file may lose its end on the way."""
        if not isinstance(reply.body, Path):
            raw = isinstance(reply.body, bytes)
            body = reply.body if raw else json.dumps(reply.body).encode()
            self._head(reply, "text/html" if raw else "application/json", len(body))
            self.wfile.write(body)
            self.wfile.flush()
            return
        told, sent = sizes_of(self.server.provider.state, call, reply.body.stat().st_size)
        self._head(reply, "application/octet-stream", told)
        with reply.body.open("rb") as source:
            self.wfile.write(source.read(sent))
        self.wfile.flush()
        if sent < told:
            raise HungUp

    def _head(self, reply: Reply, kind: str, length: int) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _dialect(call: Call) -> Any:
    spoken = call.path[:1] == ("messages",) or "anthropic-version" in call.headers or "x-api-key" in call.headers
    return anthropic_dialect if spoken else openai_dialect
