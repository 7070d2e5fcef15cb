"""`--metrics FILE`: how a run stands, in Prometheus' text format, for a node exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from jobs.errors import SettingsError
from jobs.telling.instruments import INSTRUMENTS, Instrument
from jobs.telling.live import Live, Outlet

_UNITS = {"s": "_seconds", "By": "_bytes", "1/s": "_per_second"}
_SAID = ("rate", "bytes", "time")  # last parts of names that a unit says


class MetricsFile(Outlet):
    """Keeps a file up to date; it is replaced as a whole.

    Args:
        path: The file, on this machine.
        warn: Takes a line where it cannot be written; the run goes on.

    Raises:
        SettingsError: There is no such directory, or it is one itself.
    """

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        self._path, self._warn, self._failed = Path(path), warn, False
        if self._path.is_dir() or not self._path.parent.is_dir():
            what = "is a directory" if self._path.is_dir() else "lies in no directory that is there"
            raise SettingsError(f"--metrics {path} {what}; name a file")
        self._registry = CollectorRegistry()
        self._live: Live | None = None
        self._registry.register(self)

    def show(self, live: Live) -> None:
        self._live = live
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            if not self._failed:
                self._warn(f"--metrics {self._path} cannot be written: {error}")
            self._failed = True

    def collect(self) -> Iterator[Metric]:
        """What Prometheus' client asks for."""
        live = self._live
        for instrument in INSTRUMENTS:
            if live and (values := list(instrument.read(live))):
                kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
                family = kind(name_of(instrument), instrument.doc, labels=instrument.labels)
                for labels, value in values:
                    family.add_metric([labels[name] for name in instrument.labels], value)
                yield family


def name_of(instrument: Instrument) -> str:
    """An instrument's name as Prometheus has it: with its unit; a counter's ends in `_total`, which the client adds."""
    parts = instrument.name.split(".")
    if instrument.unit and parts[-1] in _SAID:
        parts.pop()
    return "_".join(parts) + _UNITS.get(instrument.unit, "")
