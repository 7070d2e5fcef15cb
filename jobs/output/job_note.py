"""The job file: whose output it is, and where that job's state is.

On a store it bears the name of its driver's lease, as marks do: what a driver writes that stood still, and has lost the
output meanwhile, comes before its successor's and does not count.
"""

from __future__ import annotations

import re
from typing import Any

from jobs.errors import OutputError
from jobs.folder import Folder

HOME = "_gristmill"
RUNS = f"{HOME}/runs"
MOVED = "rows"  # of increments that are in a table: those of their rows that failed
STATE = ("marks", "files", "checkpoint", "retries", MOVED)  # of a job
LIVE = f"{HOME}/live.json"
_NAME = re.compile(r"job(\.[\w-]+)?\.json")


def find_job(folder: Folder) -> dict[str, Any] | None:
    """What the job file says; None where there is none.

    Raises:
        OSError: It cannot be read.
        OutputError: It is torn.
    """
    names = _names(folder)
    if not names:
        return None
    held: dict[str, Any] | None = folder.find_json(f"{HOME}/{names[-1]}")
    if held is None:
        raise FileNotFoundError(f"{folder / HOME}/{names[-1]} was there, and is not found now")
    return held


def open_output(path: str) -> Folder:
    """The directory of a job's state, by that of its output, which it is but for a table's.

    Raises:
        OutputError: There is no job's.
    """
    folder = Folder(path)
    if find_job(folder) is None:  # of a table that is a directory, the state lies beside
        folder = Folder(f"{folder.path}.gristmill")
    if find_job(folder) is None:
        raise OutputError(
            f"{path} is no output of gristmill; name what output.path names, or output.state, where there is one"
        )
    return folder


def write_job(folder: Folder, held: dict[str, Any], owner: str = "") -> None:
    """Write the job file.

    Args:
        folder: The output directory.
        held: What it says.
        owner: The lease of whoever writes it; empty on a disk.
    """
    name = f"job.{owner}.json" if owner else "job.json"
    folder.write_json(f"{HOME}/{name}", held)
    folder.delete_files(f"{HOME}/{old}" for old in _names(folder) if _rank(old) < _rank(name))


def _names(folder: Folder) -> list[str]:
    return sorted((name for name in folder.entries(HOME) if _NAME.fullmatch(name)), key=_rank)


def _rank(name: str) -> str:
    return name.removesuffix(".json")
