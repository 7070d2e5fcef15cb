"""Marks: small files that say what is committed, and which files each increment is.

A mark is written once an increment's rows are on the disk or in the store, but not yet in their place: from then on the
increment is committed, and whoever comes next puts in its place what is not there yet. What no mark names is in no
increment. On a store, where a driver that stood still may wake up beside its successor, a mark bears the name of its
driver's lease: of two marks for one increment that of the later lease counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from jobs.folder import Folder
from jobs.output.committed import Increment

_SUFFIX = ".json"


@dataclass(frozen=True)
class Mark:
    """That an increment is committed.

    Args:
        place: The directory where it belongs.
        made: What it is.
        files: Its files by their paths in that directory, with their sizes in bytes.
        draft: Where they were written, and are until all are in their place.
        moved: Its rows are in a table; the files are those of its rows that failed, for a retry.
    """

    place: str
    made: Increment
    files: dict[str, int]
    draft: str
    moved: bool = False

    @property
    def paths(self) -> list[str]:
        return [f"{self.place}/{name}" for name in self.files]


class Marks:
    """The marks of an output, or of its retries.

    Args:
        folder: The output directory.
        home: The directory of the marks inside; it is there, so that not to find it is an error.
        parent: The directory of what they mark; empty for increments that readers see.
        held: What the job file says. It names the marks that were there as its driver began, and that driver's lease:
            another one's that came later is a mark of one that had lost the output, and does not count.
    """

    def __init__(self, folder: Folder, home: str, *, parent: str = "", held: dict[str, Any] | None = None) -> None:
        self._folder, self._home, self._parent = folder, home, parent
        self._driver, self._known = (held or {}).get("driver", ""), frozenset((held or {}).get("marks", ()))

    def is_there(self, place: str) -> bool:
        """Something is committed at a place.

        Raises:
            OSError: The store does not tell.
        """
        return place.rpartition("/")[2] in self._names()

    def places(self) -> list[str]:
        """Where something is committed, in order."""
        return [f"{self._parent}/{name}".lstrip("/") for name in sorted(self._names())]

    def read(self, known: Sequence[Mark] = ()) -> list[Mark]:
        """All of them, in the order of their increments.

        Args:
            known: Those that were read before, by whoever only looks; they are not read again.

        Raises:
            OSError: The store does not tell, or tells of a mark that it does not find then.
        """
        names = self._names()
        held_before = {mark.place.rpartition("/")[2]: mark for mark in known}
        kept = [held_before[name] for name in names if name in held_before]
        names = {name: file for name, file in names.items() if name not in held_before}
        read = self._folder.read_all_json([f"{self._home}/{file}" for file in names.values()])
        for file, held in zip(names.values(), read, strict=True):
            if held is None:
                raise FileNotFoundError(f"{self._folder / self._home}/{file} was there, and is not found now")
        places = (f"{self._parent}/{name}".lstrip("/") for name in names)
        return sorted([*kept, *map(_from_json, places, read)], key=lambda mark: mark.made.number)

    def write(self, mark: Mark, owner: str = "") -> Mark:
        """Commit an increment: its rows are where the mark's draft says.

        Args:
            mark: That it is; the time is now.
            owner: The lease of whoever commits; empty on a disk, where nobody else can.
        """
        made = replace(mark.made, committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
        self.keep(mark := replace(mark, made=made), owner)
        return mark

    def keep(self, mark: Mark, owner: str = "") -> None:
        """Write a mark as it is."""
        about = {"draft": mark.draft, "files": mark.files, **({"moved": True} if mark.moved else {})}
        self._folder.write_json(f"{self._home}/{_file_of(mark.place, owner)}", {**asdict(mark.made), **about})

    def counts(self, place: str, owner: str) -> bool:
        """The mark of an owner's lease is the one that counts."""
        return self._names().get(place.rpartition("/")[2]) == _file_of(place, owner)

    def _names(self) -> dict[str, str]:
        """The marks that count: the increment's directory, and the file's name."""
        found: dict[str, str] = {}
        files = [file for file in self._folder.entries(self._home, must_exist=True) if self._is_valid(file)]
        for file in sorted(files, key=lambda file: file.removesuffix(_SUFFIX)):
            found[file.partition(".")[0]] = file  # leases are named in their order
        return found

    def paths(self) -> list[str]:
        """The files of the marks that count."""
        return [f"{self._home}/{file}" for file in self._names().values()]

    def _is_valid(self, file: str) -> bool:
        owner = file.removesuffix(_SUFFIX).partition(".")[2]
        known = not owner or not self._driver or owner == self._driver or f"{self._home}/{file}" in self._known
        return known and file.endswith(_SUFFIX)


def _file_of(place: str, owner: str) -> str:
    return place.rpartition("/")[2] + (f".{owner}" if owner else "") + _SUFFIX


def _from_json(place: str, held: dict[str, Any]) -> Mark:
    return Mark(
        place, Increment.from_json(held), held.get("files", {}), held.get("draft", ""), held.get("moved", False)
    )


def data_files(folder: Folder, name: str) -> dict[str, int]:
    """Files of rows in a directory, with their sizes: not what Spark and Hadoop leave beside them."""
    return {file.name: file.size for file in folder.walk(name) if is_data(file.name)}


def is_data(name: str) -> bool:
    """A file holds rows, by its path."""
    return not any(part.startswith(("_", ".")) for part in name.split("/"))
