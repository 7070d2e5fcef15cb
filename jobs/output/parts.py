"""Rows that workers have written: those of the tasks that count are taken, and nothing else.

Spark tells of one attempt of each task. What another one has written, or writes still, lies beside and goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.errors import JobError
from jobs.folder import Folder
from jobs.output.committed import Committed, sum_groups
from udfs.worker.parts import DRAFT

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def write_parts(folder: Folder, draft: str, by_workers: Callable[[str], DataFrame]) -> Committed:
    """Have workers write rows, and put their files where Spark would have written them.

    Args:
        folder: The output directory, on a disk.
        draft: Where the rows are to be; nothing is there yet.
        by_workers: Has rows written below a directory, and tells of the files.

    Returns:
        The sums over the rows, as those who wrote them counted.

    Raises:
        JobError: What was told is not what is there.
    """
    aside = f"{draft}.parts"
    for name in (draft, aside):
        folder.delete(name)
    folder.make(aside)
    told = by_workers(os.path.abspath(folder.local_path(aside))).collect()
    there = {file.name: file.size for file in folder.walk(aside, must_exist=True)}
    for name, size, outcome in sorted({(row["file"], row["size"], row["outcome"]) for row in told}):
        if there.get(name) != size:
            raise JobError(
                f"a worker wrote {name} of {size:,} bytes below {folder / aside}, and the driver does not find it so: "
                "output.path has to be one directory for all machines"
            )
        place = f"{draft}/outcome={outcome}"
        folder.make(place)
        folder.move_file(f"{aside}/{name}", f"{place}/{name.removesuffix(DRAFT)}")
    folder.delete(aside)
    return sum_groups(row.asDict() for row in told)
