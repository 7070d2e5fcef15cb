"""What Structured Streaming noted of the files of an input: which it has seen, and in which increment.

Spark keeps this itself (`sources/0`, `offsets` and `commits` of a checkpoint); we only read it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.folder import Folder

_VERSION = "v1"


@dataclass(frozen=True)
class SeenFile:
    """A file that is in an increment.

    Args:
        uri: As Spark names it.
        changed_ms: When it was last written, as it was planned.
        offset: Of the source's log; see `Checkpoint.offset_of`.
    """

    uri: str
    changed_ms: int
    offset: int

    @property
    def path(self) -> str:
        """Its path without scheme and host, spelt as a user would."""
        return path_of(self.uri)


class Checkpoint:
    """A file source's checkpoint.

    Args:
        folder: The output directory.
        name: The checkpoint's path inside.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self.name = folder, name

    def seen(self) -> list[SeenFile]:
        """Every file that is in an increment, committed or planned.

        Raises:
            OSError: The store does not tell.
        """
        log = f"{self.name}/sources/0"
        names = self._folder.entries(log, must_exist=self.is_begun())
        compact = max((int(n.split(".")[0]) for n in names if n.endswith(".compact")), default=-1)
        later = sorted(int(n) for n in names if n.isdigit() and int(n) > compact)
        wanted = ([f"{compact}.compact"] if compact >= 0 else []) + [str(n) for n in later]
        return [
            SeenFile(entry["path"], entry["timestamp"], entry["batchId"])
            for name in wanted
            for entry in _read_lines(self._folder.read_text(f"{log}/{name}"))
        ]

    def is_begun(self) -> bool:
        """Something is planned."""
        return self._find(f"{self.name}/offsets/0") is not None

    def last_committed(self) -> int:
        """Number of the last batch that is over; -1 for none."""
        return max((int(n) for n in self._folder.entries(f"{self.name}/commits") if n.isdigit()), default=-1)

    def files_of(self, batch: int) -> list[SeenFile]:
        """The files of one batch that is planned.

        Raises:
            FileNotFoundError: The checkpoint does not tell; a guess would lose rows or score them twice.
        """
        first, last = self.offset_of(batch - 1), self.offset_of(batch)
        if last < 0 or (batch > 0 and first < 0):
            raise FileNotFoundError(f"{self._folder / self.name} does not tell which files it is made of")
        found = [file for file in self.seen() if first < file.offset <= last]
        # The source plans no step without a file: a listing that is false would make the batch smaller.
        if {file.offset for file in found} != set(range(first + 1, last + 1)):
            raise FileNotFoundError(f"{self._folder / self.name} does not tell all files that it is made of")
        return found

    def offset_of(self, batch: int) -> int:
        """Where a batch ends in the source's log; -1 for none."""
        told = self._find(f"{self.name}/offsets/{batch}")
        return -1 if told is None else int(_read_lines(told)[-1].get("logOffset", -1))

    def _find(self, name: str) -> str | None:
        """What is noted; None where nothing is. It is opened, as in `Folder.find_json`."""
        try:
            return self._folder.read_text(name)
        except FileNotFoundError:
            return None


def _read_lines(noted: str) -> list[dict[str, Any]]:
    version, *lines = noted.splitlines()
    if version != _VERSION:
        raise ValueError(f"a note of Spark's checkpoint is of version {version}, not {_VERSION}")
    return [json.loads(line) for line in lines if line.strip() not in ("", "-")]


def path_of(uri: str) -> str:
    """The path of one of Spark's URIs, without scheme and host, spelt as a user would."""
    return unquote(urlsplit(uri).path)
