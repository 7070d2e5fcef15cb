"""A second server, that must not hear the key: it writes down all that reaches it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder:
    """What was said to a server on loopback at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[str] = []  # as in "GET /v1/models"
        self._heard: list[bytes] = []

    def heard(self, secret: str) -> bool:
        """Whether any call had these letters in its address, headers or body."""
        return any(secret.encode() in said for said in self._heard)

    def note(self, call: str, said: bytes) -> None:
        self.calls.append(call)
        self._heard.append(call.encode() + said)


@contextlib.contextmanager
def serve_recorder() -> Iterator[Recorder]:
    """Run a server that replies {} to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            recorder.note(f"{self.command} {self.path}", bytes(self.headers) + body)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder = Recorder(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
