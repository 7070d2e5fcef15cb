"""Whether there is anything to do, found out without Spark: a nightly job whose input has not changed ends at once.

A run that has left nothing of its files keeps what it saw: every file below the input's path and in the output, the
settings, the model's files. Where the next one finds all of it as it was, Spark would find nothing new either.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from jobs.errors import JobError
from jobs.folder import FileInfo
from jobs.hiding import is_secret, seal
from jobs.input.files import InputFiles, find_files
from jobs.output.directory import Output
from jobs.paths import scheme_of
from jobs.serving import list_specs
from jobs.settings import Settings
from jobs.telling.report import find_versions
from udfs.model.files import open_model_of


class LastLook:
    """What is there as a run begins, to be held to what the last run has kept.

    Args:
        settings: The job, its model pinned.
        output: Its output.
    """

    def __init__(self, settings: Settings, output: Output) -> None:
        self._settings, self._output = settings, output
        self._found = _find_files(settings)

    def find_warnings(self) -> list[str] | None:
        """Warnings of the run that has left nothing of what is there; None where there may be something to score."""
        try:
            kept = self._output.nothing_left() if self._found else None
            return list(kept["warnings"]) if kept and kept["seen"] == self._seal() else None
        except (JobError, OSError):  # a look with Spark says what is wrong
            return None

    def keep(self, files: InputFiles, warnings: Sequence[str]) -> None:
        """Keep that nothing is left, for the next run.

        Args:
            files: As Spark saw them. Those that were not there at the first look, or that Spark has elsewhere (a
                path without a scheme may mean HDFS), keep it from being known.
            warnings: Of these files; the next run repeats them.
        """
        is_here = files.schemes == {scheme_of(str(self._settings.input.path))}
        if self._found and is_here and files.taken and files.taken <= self._found.keys():
            with contextlib.suppress(JobError, OSError):  # without it, the next run looks with Spark
                self._output.keep_nothing_left({"seen": self._seal(), "warnings": [*warnings]})

    def _seal(self) -> str:
        """A keyed hash of all that decides whether there is something to do."""
        asked = self._settings.model_dump(mode="json")
        for section, name in (("input", "options"), ("spark", "conf")):  # Spark's may say where a path leads
            asked[section][name] = {n: v for n, v in asked[section][name].items() if not is_secret(n)}
        model = [open_model_of(spec).stamp() for spec in list_specs(self._settings)]
        found = [(path, info.size, info.changed_ns) for path, info in sorted((self._found or {}).items())]
        held = [(info.name, info.size, info.changed_ns) for info in self._output.state_files()]
        return seal(json.dumps([find_versions(), asked, model, found, held]), self._output.key())


def _find_files(settings: Settings) -> Mapping[str, FileInfo] | None:
    """Every file below the input's path; None where it is not of files, or out of this machine's reach."""
    if not settings.input.is_files():
        return None
    try:
        return find_files(str(settings.input.path))[1]
    except (JobError, OSError):  # Spark may reach it; if not, it says why
        return None
