"""The result file, for a scheduler: which run it was, how it ended, where its report lies."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import SettingsError, exit_code_of
from jobs.hiding import hide, without_secrets
from jobs.settings import Settings
from jobs.telling.report import RunReport
from udfs.errors import GristmillError

_COUNTS = (
    *("rows", "succeeded", "failed", "failed_by_code", "increments", "input_tokens", "output_tokens", "left"),
    "warnings",
)
_ENDS = {0: "completed", 2: "refused", 3: "failed", 4: "expired", 130: "interrupted", 143: "interrupted"}


class ResultFile:
    """What is known of a run, in a file that is replaced as a whole whenever more is known.

    While the run goes its status is `running`: so it stays where the process was killed.

    Args:
        path: The file; None keeps none.

    Raises:
        SettingsError: It cannot be written.
    """

    def __init__(self, path: Path | None = None, *, command: str = "score") -> None:
        self._path = path
        self._settings: Settings | None = None
        self._known: dict[str, Any] = {
            "command": command,
            "run_id": None,
            "status": "running",
            "exit_code": None,
            "error": None,
            "output": None,
            "report": None,
        }
        try:
            self._write()
        except OSError as error:
            raise SettingsError(f"--result {path} cannot be written: {error.strerror}") from error

    def begin(self, settings: Settings) -> Settings:
        """The settings hold: where the answers will be; returns them."""
        self._settings = settings
        self._tell(output=without_secrets(settings.output.place))
        return settings

    def run(self, run_id: str) -> None:
        """The run has begun."""
        self._tell(run_id=run_id)

    def keep(self, report: RunReport, path: str | None) -> None:
        """The run has ended, and its report lies there, if it could be written."""
        told = report.as_dict()
        self._tell(status=report.status, report=path, **{name: told[name] for name in _COUNTS})

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Keep how the body ends, and raise what it raises."""
        try:
            yield
        except BaseException as error:
            self._end(exit_code_of(error), error)
            raise
        self._end(0, None)

    def _end(self, code: int, error: BaseException | None) -> None:
        status = self._known["status"]
        if status == "running" or (status == "completed") != (code == 0):
            status = _ENDS.get(code, "failed")
        told = error.message if isinstance(error, GristmillError) else str(error or "") or type(error).__name__
        if self._settings is not None and error is not None:
            told = hide(told, self._settings)
        self._tell(status=status, exit_code=code, error=told if error is not None else None)

    def _tell(self, **known: Any) -> None:
        self._known |= known
        with contextlib.suppress(OSError):  # a full disk has no room for it; the run goes on
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(self._known, indent=2) + "\n", encoding="utf-8")
            beside.replace(self._path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
