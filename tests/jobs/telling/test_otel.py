"""Metrics by OpenTelemetry, to a receiver of its protocol on this machine."""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from jobs.telling import otel
from jobs.telling.instruments import INSTRUMENTS
from jobs.telling.otel import open_otel
from tests.live_runs import make_live

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'gristmill[otel]'")
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class Receiver(ThreadingHTTPServer):
    """Keeps what was sent; waits `pause_s` before it answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent, self.paths = list[ExportMetricsServiceRequest](), list[str]()
        self.status, self.pause_s = 200, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.sent.append(ExportMetricsServiceRequest.FromString(body))
        self.server.paths.append(self.path)
        time.sleep(self.server.pause_s)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def _fail(line: str) -> None:
    raise AssertionError(line)


def test_the_same_instruments_reach_a_receiver(receiver: Receiver) -> None:
    outlet = open_otel(_fail)
    assert outlet is not None
    outlet.show(make_live())
    outlet.show(make_live(status="completed"))
    outlet.close()
    assert set(receiver.paths) == {"/v1/metrics"}
    (resource,) = receiver.sent[-1].resource_metrics
    about = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert about["service.name"] == "gristmill"
    assert about["gristmill.run_id"] == "20261127T010203Z-abcdef"
    metrics = {m.name: m for m in resource.scope_metrics[0].metrics}
    known = {i.name for i in INSTRUMENTS if list(i.read(make_live()))}
    assert metrics.keys() == known
    rows = {p.attributes[0].value.string_value: p.as_double for p in metrics["gristmill.rows"].sum.data_points}
    assert rows == {"succeeded": 290, "failed": 10}
    assert metrics["gristmill.rows"].sum.is_monotonic
    assert metrics["gristmill.left.time"].unit == "s"
    (info,) = metrics["gristmill.run"].gauge.data_points
    assert {a.key: a.value.string_value for a in info.attributes}["status"] == "completed"


def test_figures_are_sent_while_the_run_goes(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    outlet = open_otel(_fail)
    assert outlet is not None
    outlet.show(make_live())
    until = time.monotonic() + 20
    while len(receiver.sent) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    outlet.close()
    assert len(receiver.sent) >= 2


def test_a_receiver_that_refuses_is_told_once_and_one_that_hangs_holds_nobody_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(otel, "_CLOSE_S", 1.0)
    receiver.status = 403
    refused = open_otel(told.append)
    assert refused is not None
    refused.show(make_live())
    refused.close()
    assert len(told) == 1
    receiver.pause_s = 60
    hangs = open_otel(told.append)
    assert hangs is not None
    hangs.show(make_live())
    began = time.monotonic()
    hangs.close()
    assert time.monotonic() - began < 5
    assert len(told) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")],
)
def test_nothing_is_sent_where_the_variables_do_not_ask_for_it(
    name: str, value: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert open_otel(_fail) is None


def test_without_the_sdk_a_line_says_what_to_install(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    told: list[str] = []
    assert open_otel(told.append) is None
    assert "pip install 'gristmill[otel]'" in told[0]
    assert receiver.url not in told[0]  # it may hold a password
