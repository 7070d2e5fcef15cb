"""Put committed rows in their place, tell what lies there and is not committed, and take that away.

A driver may stand still at any step and wake up beside its successor. So files are taken away by names that were listed
before the driver last looked whether the output is its own: what its successor writes has other names.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping

from jobs.folder import Folder
from jobs.output.marks import Mark, data_files, is_data

_KEPT = ".kept"  # files that are no result are no `*.parquet` either: readers of `OUT/**/*.parquet` do not see them
_ASIDE = "_gristmill/writing/aside"


def put_in_place(folder: Folder, mark: Mark, check: Callable[[], None]) -> None:
    """Move an increment's files from where they were written to where they belong; can be repeated.

    A directory is renamed in one step where there is such a step; else its files are copied.

    Args:
        folder: The output directory.
        mark: That it is committed.
        check: Raises if the output is this driver's no more.
    """
    there = data_files(folder, mark.place)
    if mark.files.items() <= there.items():
        return
    check()
    take_away(folder, (f"{mark.place}/{name}" for name in there.keys() - mark.files.keys()))
    if folder.renames:
        _make_room(folder, mark.place)
        folder.rename(mark.draft, mark.place)
        return
    folder.copy_all(mark.draft, mark.place, (name for name, size in mark.files.items() if there.get(name) != size))
    folder.sync(mark.place)
    folder.delete(mark.draft)


def take_away(folder: Folder, paths: Iterable[str]) -> None:
    """Delete files by their names, and the directories of increments that are empty then."""
    wanted = list(paths)
    folder.delete_files(wanted)
    if folder.renames:
        for place in {path.partition("/")[0] for path in wanted if path.startswith("increment=")}:
            _make_room(folder, place)


def _make_room(folder: Folder, place: str) -> None:
    """Take away a directory without rows: by a rename, so that rows that came at the last moment can come back."""
    if not folder.exists(place) or data_files(folder, place):
        return
    aside = f"{_ASIDE}-{uuid.uuid4().hex[:8]}/{place}"
    folder.rename(place, aside)
    if data_files(folder, aside):
        folder.rename(aside, place)


def find_unplaced(there: Mapping[str, int], marks: Iterable[Mark]) -> tuple[list[Mark], list[str]]:
    """What is committed and is not in its place, since a driver was killed in between.

    Args:
        there: All files of an output, with their sizes.
        marks: What is committed.

    Returns:
        Increments that are where they were written; and files that are nowhere, or not as they were committed.
    """
    drafts, lost = [], []
    for mark in marks:
        gone = [name for name, size in mark.files.items() if there.get(f"{mark.place}/{name}") != size]
        if gone and all(there.get(f"{mark.draft}/{name}") == mark.files[name] for name in gone):
            drafts.append(mark)
        else:
            lost += [f"{mark.place}/{name}" for name in gone]
    return drafts, lost


def find_strangers(there: Iterable[str], marks: Iterable[Mark]) -> list[str]:
    """Files among the increments that readers would take for results, and that are not committed.

    A driver that lost its output, and stood still as it wrote, leaves such files on an object store.

    Args:
        there: All files of an output.
        marks: What is committed.
    """
    ours = {path for mark in marks for path in mark.paths}
    return sorted(path for path in there if path.startswith("increment=") and is_data(path) and path not in ours)


def clean_draft(folder: Folder, draft: str) -> dict[str, int]:
    """Leave nothing but rows where they were written; returns the files with their sizes.

    Spark's notes and checksums stop a reader that takes all in a directory for Parquet.

    Raises:
        OSError: There are no rows, or the store does not tell.
    """
    rows = rows_of(folder, draft)
    folder.delete_files(
        f"{draft}/{file.name}" for file in folder.walk(draft, must_exist=True) if not is_data(file.name)
    )
    return rows


def rows_of(folder: Folder, name: str) -> dict[str, int]:
    """Files of rows in a directory that holds some, with their sizes.

    Raises:
        OSError: There are none, or the store does not tell.
    """
    rows = {file.name: file.size for file in folder.walk(name, must_exist=True) if is_data(file.name)}
    if not rows:
        raise FileNotFoundError(f"{folder / name} holds no rows")
    return rows


def keep_apart(folder: Folder, name: str, rows: Mapping[str, int]) -> dict[str, int]:
    """Give files of rows names that no reader takes for a result; returns them with their sizes."""
    for file in rows:
        if not file.endswith(_KEPT):
            folder.move_file(f"{name}/{file}", f"{name}/{file}{_KEPT}")
    return {f"{file.removesuffix(_KEPT)}{_KEPT}": size for file, size in rows.items()}
