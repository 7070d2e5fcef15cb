"""Outputs of an earlier gristmill, whose marks lay among the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.folder import Folder
from jobs.output.committed import Increment
from jobs.output.job_note import MOVED
from jobs.output.marks import Mark, Marks
from jobs.output.placing import keep_apart, rows_of

_OLD_MARK = "_increment.json"  # in an increment's own directory


def read_committed(folder: Folder, held: dict[str, Any] | None, known: Sequence[Mark] = ()) -> list[Mark]:
    """What is committed in an output, in order, for whoever only looks at it.

    Args:
        folder: The output directory.
        held: Its job file; None where there is none. An earlier gristmill's tells of no layout.
        known: Marks of this job that were read before; they are not read again.
    """
    if held is None:
        return []
    home = f"{held.get('home', '_gristmill')}/marks"
    if "layout" in held:
        parent = f"{held['home']}/{MOVED}" if held.get("in_table") else ""
        return Marks(folder, home, parent=parent, held=held).read(known)
    adopted = Marks(folder, home).read() if folder.exists(home) else []
    old = [Mark(place, made, {}, "") for place, made in _read_old(folder)]
    by_place = {mark.place: mark for mark in [*old, *adopted]}
    return sorted(by_place.values(), key=lambda mark: mark.made.number)


def read_kept(folder: Folder, held: dict[str, Any]) -> list[Mark]:
    """As `read_committed`, for whoever reads the rows: those of a table's retries are where they were kept."""
    marks = read_committed(folder, held)
    if not held.get("in_table"):
        return marks
    kept = f"{held['home']}/retries"
    return [*(mark for mark in marks if not mark.made.is_retry), *Marks(folder, kept, parent=kept).read()]


def adopt_old_marks(folder: Folder, home: str) -> None:
    """Bring an output up to date. Can be repeated.

    Raises:
        OSError: The store does not tell which files an increment has.
    """
    for parent, marks in (
        ("", Marks(folder, f"{home}/marks")),
        (f"{home}/retries", Marks(folder, f"{home}/retries", parent=f"{home}/retries")),
    ):
        for place, made in _read_old(folder, parent):
            if not marks.is_there(place):
                rows = rows_of(folder, place)
                marks.keep(Mark(place, made, keep_apart(folder, place, rows) if parent else rows, ""))
            folder.delete_files([f"{place}/{_OLD_MARK}"])


def _read_old(folder: Folder, parent: str = "") -> list[tuple[str, Increment]]:
    places = [f"{parent}/{name}".lstrip("/") for name in folder.entries(parent) if name.startswith("increment=")]
    read = folder.read_all_json([f"{place}/{_OLD_MARK}" for place in places])
    return [(place, Increment.from_json(held)) for place, held in zip(places, read, strict=True) if held is not None]
