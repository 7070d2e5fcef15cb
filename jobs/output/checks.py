"""What an output directory is refused for: it holds something else, or has lost what had been committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.errors import OutputError
from jobs.folder import Folder
from jobs.input.checkpoint import Checkpoint
from jobs.input.sources import Kind
from jobs.output.committed import name_of
from jobs.output.job_note import HOME, STATE, find_job
from jobs.output.marks import Mark
from jobs.output.placing import find_unplaced


def check_ours(folder: Folder) -> None:
    """Refuse a directory that holds files and no gristmill job.

    Raises:
        OutputError: It does.
    """
    entries = [entry for entry in folder.entries() if entry != HOME]
    if entries and find_job(folder) is None:
        check_no_increments(folder)
        raise OutputError(f"output.path {folder.path} holds {entries[0]} and no gristmill job; name an empty directory")


def check_no_increments(folder: Folder) -> None:
    """What is committed is thrown away by `--overwrite` alone, whatever a file system says of the job file.

    Raises:
        OutputError: There are increments and no job file.
    """
    state = [f"{HOME}/{name}/{e}" for name in STATE for e in folder.entries(f"{HOME}/{name}")]
    found = [*(entry for entry in folder.entries() if entry.startswith("increment=")), *state]
    if found:
        raise OutputError(
            f"output.path {folder.path} has {found[0]}, but its job file {HOME}/job.json is not there. Nothing was "
            "changed: run again if the file system did not answer, put the file back, or name another directory"
        )


def check_whole(folder: Folder, read_marks: Callable[[], Sequence[Mark]], checkpoint: Checkpoint, kind: Kind) -> None:
    """Everything that the checkpoint takes for done is there: what was taken away would never be scored again.

    So is the checkpoint: a new one plans old and new rows under the number of what is committed.

    Args:
        folder: The output directory.
        read_marks: Reads what is committed.
        checkpoint: The job's.
        kind: Of its input.

    Raises:
        OutputError: Something is gone.
    """
    try:
        marks = read_marks()
    except FileNotFoundError as error:
        raise OutputError(
            f"the marks of output.path {folder.path}, which tell what is committed, are not there ({error}). Nothing "
            "was changed: run again if the file system did not answer, put them back, or start afresh with --overwrite"
        ) from error
    if find_unplaced(folder.sizes(), marks)[1]:  # a store may have failed to find what is there
        marks = read_marks()
        if lost := find_unplaced(folder.sizes(), marks)[1]:
            raise has_lost(folder, lost[0])
    first = [mark.made for mark in marks if not mark.made.is_retry]
    there = {increment.number for increment in first}
    by_span = max((i.number for i in first if i.input_span is not None), default=-1)
    last = max(checkpoint.last_committed(), by_span)
    gone = sorted(set(range(last + 1)) - there)
    if gone:
        raise has_lost(folder, name_of(gone[0]))
    # A run that was killed right after it committed increment 0 leaves a checkpoint that is no more than begun.
    is_lost = max(there, default=0) > 0 or (kind in ("files", "table") and not checkpoint.is_begun())
    if there and last < 0 and is_lost:
        raise OutputError(
            f"output.path {folder.path} has increments, but {checkpoint.name} is gone; put it back, or start afresh "
            "with --overwrite"
        )


def has_lost(folder: Folder, name: str) -> OutputError:
    """That a committed increment is gone."""
    return OutputError(
        f"output.path {folder.path} has lost {name}, which had been committed, or it was changed; put it back, or "
        "start afresh with --overwrite"
    )
