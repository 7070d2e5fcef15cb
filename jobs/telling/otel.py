"""Metrics by OpenTelemetry, where its own variables name a place: the instruments of `--metrics`, by OTLP over HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from jobs.hiding import without_secrets
from jobs.telling.instruments import INSTRUMENTS, Instrument
from jobs.telling.live import Live, Outlet

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_CLOSE_S = 5.0  # for the last figures to be sent


class OtelOutlet(Outlet):
    """Has the SDK send what was last seen, as often as `OTEL_METRIC_EXPORT_INTERVAL` says, and in the end.

    Args:
        warn: Takes a line about what keeps it from that; the run goes on.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn, self._failed, self._problems = warn, False, _Once(warn)
        self._live: Live | None = None
        self._provider: Any = None

    def show(self, live: Live) -> None:
        self._live = live
        if self._provider is None and not self._failed:
            try:
                self._provider = self._start(live)
            except Exception as error:  # noqa: BLE001 - whatever the SDK makes of its variables, the run goes on
                self._failed = True
                self._warn(f"no metrics are sent by OpenTelemetry: {without_secrets(str(error))}")

    def close(self) -> None:
        if self._provider is not None:
            closing = threading.Thread(target=self._shut_down, name="gristmill-otel", daemon=True)
            closing.start()
            closing.join(_CLOSE_S)
            self._problems.hush()

    def _shut_down(self) -> None:
        with contextlib.suppress(Exception):
            self._provider.shutdown(timeout_millis=1000 * _CLOSE_S)

    def _start(self, live: Live) -> Any:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        logger = logging.getLogger("opentelemetry")
        logger.handlers = [self._problems]  # in the place of that of a run before
        logger.propagate = False
        own = {"gristmill.run_id": live.run_id, "gristmill.task": live.task, "gristmill.model": live.model}
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "gristmill"}
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        provider = MeterProvider([reader], Resource.create({**named, **own}), shutdown_on_exit=False)
        meter = provider.get_meter("gristmill")
        for instrument in INSTRUMENTS:
            make = meter.create_observable_counter if instrument.kind == "counter" else meter.create_observable_gauge
            make(instrument.name, [self._observer(instrument)], unit=instrument.unit, description=instrument.doc)
        return provider

    def _observer(self, instrument: Instrument) -> Callable[[Any], Iterable[Any]]:
        from opentelemetry.metrics import Observation

        def observe(_: Any) -> Iterable[Any]:
            live = self._live
            return [] if live is None else [Observation(value, labels) for labels, value in instrument.read(live)]

        return observe


class _Once(logging.Handler):
    """Tells the first thing that goes wrong with sending, and nothing more: it goes wrong again and again."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn, self._told = warn, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            self._warn(f"metrics by OpenTelemetry: {without_secrets(record.getMessage())}")

    def hush(self) -> None:
        """Say nothing from here on: the run is over."""
        self._told = True


def open_otel(warn: Callable[[str], None]) -> OtelOutlet | None:
    """An outlet where OpenTelemetry's variables name a place and the SDK is there; a warning if that is not.

    Args:
        warn: Takes a line for the user.
    """
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_METRICS_EXPORTER") == "none"
    named = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if named is None or off:
        return None
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.metrics  # noqa: F401
    except ImportError:
        warn(f"{named} is set, and nothing is sent there: pip install 'gristmill[otel]'")
        return None
    return OtelOutlet(warn)
