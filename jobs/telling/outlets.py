"""Who else is shown how a run stands: a file that was asked for, and OpenTelemetry where its variables say so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from jobs.preflight import show_warning
from jobs.telling.live import Outlet
from jobs.telling.otel import open_otel
from jobs.telling.prometheus import MetricsFile


@contextlib.contextmanager
def open_outlets(metrics: str | None, console: Console) -> Iterator[tuple[Outlet, ...]]:
    """The outlets of a run, closed in the end.

    Args:
        metrics: A file for Prometheus' text format.
        console: Where is said what goes wrong with them.

    Raises:
        SettingsError: The file cannot be one.
    """

    def warn(line: str) -> None:
        show_warning(console, line)

    found = (MetricsFile(metrics, warn) if metrics else None, open_otel(warn))
    outlets = tuple(outlet for outlet in found if outlet is not None)
    try:
        yield outlets
    finally:
        for outlet in outlets:
            outlet.close()
