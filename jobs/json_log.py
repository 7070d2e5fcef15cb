"""`--log-json`: all that goes to the terminal as a log, as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console

_NAME = "gristmill"
_LEVELS = {"warning: ": logging.WARNING, "error: ": logging.ERROR}
_WIDTH = 10_000  # nothing is cut or wrapped


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class JsonConsole(Console):
    """Takes what is printed for people, and logs it; there is no terminal, so that no bar is shown."""

    def __init__(self) -> None:
        super().__init__(file=sys.stderr, force_terminal=False, color_system=None, width=_WIDTH)

    def print(self, *objects: Any, **how: Any) -> None:
        """Log what is printed, by a level that its first word tells."""
        with self.capture() as captured:
            super().print(*objects, **how)
        told = captured.get().strip()
        start = next((start for start in _LEVELS if told.startswith(start)), "")
        if told:
            logging.getLogger(_NAME).log(_LEVELS.get(start, logging.INFO), "%s", told.removeprefix(start))


def use_json() -> None:
    """From here on logs of this process are JSON lines on its standard error: ours, libraries', what is not caught."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_NAME).setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda raised: _log_uncaught(
        raised.exc_type, raised.exc_value or raised.exc_type(), raised.exc_traceback
    )


def is_json() -> bool:
    """Whether `use_json` was called."""
    return any(isinstance(handler.formatter, _Formatter) for handler in logging.getLogger().handlers)


def make_console() -> Console:
    """Where logs of the command go."""
    return JsonConsole() if is_json() else Console(file=sys.stderr)


def log_report(report: dict[str, Any]) -> None:
    """The report of a run, as one line."""
    logging.getLogger(_NAME).info("report", extra={"told": {"report": report}})


def log_lines(stream: TextIO) -> None:
    """Log what another process writes until it ends: lines of JSON as they are, others as messages."""
    handler = next(handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler))
    for line in stream:
        try:
            is_told = isinstance(json.loads(line), dict)
        except ValueError:
            is_told = False
        if is_told:
            handler.acquire()
            handler.stream.write(f"{line.rstrip()}\n")
            handler.release()
        elif line.strip():
            logging.getLogger(f"{_NAME}.spark").info("%s", line.rstrip())


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(_NAME).critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
