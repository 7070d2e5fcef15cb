"""Put committed rows in their place, and tell what lies there and is not committed."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.folder import Folder
from jobs.output.marks import Mark, data_files, is_data

KEPT = ".kept"  # files that are no result are no `*.parquet` either: readers of `OUT/**/*.parquet` do not see them


def put_in_place(folder: Folder, mark: Mark) -> None:
    """Move an increment's files from where they were written to where they belong; can be repeated.

    A directory is renamed in one step where there is such a step; else its files are copied.
    """
    if folder.renames:
        folder.delete(mark.place)  # it is in no mark
        folder.rename(mark.draft, mark.place)
        return
    there = data_files(folder, mark.place)
    folder.copy_all(mark.draft, mark.place, (name for name, size in mark.files.items() if there.get(name) != size))
    folder.delete(mark.draft)


def find_unplaced(folder: Folder, marks: Iterable[Mark]) -> tuple[list[Mark], list[str]]:
    """What is committed and is not in its place, since a driver was killed in between.

    Returns:
        Increments that are where they were written; and files that are nowhere, or not as they were committed.
    """
    there = {file.name: file.size for file in folder.walk()}
    drafts, lost = [], []
    for mark in marks:
        gone = [name for name, size in mark.files.items() if there.get(f"{mark.place}/{name}") != size]
        if gone and all(there.get(f"{mark.draft}/{name}") == size for name, size in mark.files.items()):
            drafts.append(mark)
        else:
            lost += [f"{mark.place}/{name}" for name in gone]
    return drafts, lost


def find_strangers(folder: Folder, marks: Iterable[Mark]) -> list[str]:
    """Files among the increments that readers would take for results, and that are not committed.

    A driver that lost its output, and stood still as it wrote, leaves such files on an object store.
    """
    ours = {path for mark in marks for path in mark.paths}
    found = [place for place in folder.entries() if place.startswith("increment=")]
    return sorted(
        path for place in found for name in data_files(folder, place) if (path := f"{place}/{name}") not in ours
    )


def clean_draft(folder: Folder, draft: str, *, is_result: bool) -> dict[str, int]:
    """Leave nothing but rows where they were written; returns the files with their sizes.

    Spark's notes and checksums stop a reader that takes all in a directory for Parquet.
    """
    found = folder.walk(draft, must_exist=True)
    rows = {file.name: file.size for file in found if is_data(file)}
    for file in found:
        if file.name not in rows:
            folder.delete_file(f"{draft}/{file.name}")
    if is_result:
        return rows
    for name in rows:
        folder.move_file(f"{draft}/{name}", f"{draft}/{name}{KEPT}")
    return {f"{name}{KEPT}": size for name, size in rows.items()}
