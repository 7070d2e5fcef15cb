"""Tables whose rows were changed or deleted: what their log says of it, and what a user can do."""

from __future__ import annotations

import re
from typing import Any

from jobs.errors import InputError

# Options that skip what changes rows: of Delta, and of Iceberg for a snapshot's operation.
_SKIP_COMMITS = "skipChangeCommits"
SKIP_SNAPSHOTS = {"overwrite": "streaming-skip-overwrite-snapshots", "delete": "streaming-skip-delete-snapshots"}
_SKIPS = (_SKIP_COMMITS, *SKIP_SNAPSHOTS.values())
_CHANGED = re.compile(r"DELTA_SOURCE_TABLE_IGNORE_CHANGES|DELTA_SOURCE_IGNORE_DELETE")
_NO_FEED = re.compile(r"DELTA_MISSING_CHANGE_DATA|change data was not recorded", re.I)
_GONE = re.compile(r"DIFFERENT_DELTA_TABLE_READ_BY_STREAMING_SOURCE")
_DELETE_FILES = re.compile(r"delete files are currently not supported", re.I)
_VACUUMED = re.compile(r"cannot be read: .*(FileNotFoundException|FILE_NOT_FOUND|FILE_NOT_EXIST)", re.S)
_BOUNDS = {"maxbytespertrigger", "maxfilespertrigger"}
# How a log is followed; another choice changes nothing of what is scored already.
_HOW_TO_FOLLOW = {
    "ignoredeletes",
    "failondataloss",
    "streaming-max-files-per-micro-batch",  # of Iceberg's stream, which is not used
    "streaming-max-rows-per-micro-batch",
    *_BOUNDS,
    *(name.lower() for name in _SKIPS),
}


def explain_change(told: str) -> InputError | None:
    """What a user can do about a table that was changed; None where it says something else.

    Args:
        told: By Delta's stream, or as Iceberg's changes are read.
    """
    if _CHANGED.search(told):
        return changed_rows(told, _SKIP_COMMITS)
    if _NO_FEED.search(told):
        return InputError(
            f"the table does not tell what was changed in it ({told}); `ALTER TABLE … SET TBLPROPERTIES "
            "(delta.enableChangeDataFeed = true)` makes it do so from then on, and --overwrite begins with what it "
            "holds now"
        )
    if _DELETE_FILES.search(told):
        return InputError(
            f"the table's changes cannot be followed ({told}): Iceberg tells of them where rows are copied on write. "
            "Set write.delete.mode, write.update.mode and write.merge.mode to copy-on-write, and begin with what it "
            "holds now by --overwrite"
        )
    return _no_way_back(told) if _GONE.search(told) else None


def explain_vacuumed(told: str) -> InputError | None:
    """What a user can do where files that a Delta table's log names are gone; None where it says something else."""
    return _no_way_back(told) if _VACUUMED.search(told) and "_gristmill/" not in told else None


def _no_way_back(told: str) -> InputError:
    return InputError(
        f"the table's log no longer goes back to what was scored last ({told}); score all that the table holds now "
        "with --overwrite"
    )


def changed_rows(told: str, option: str) -> InputError:
    """The error for rows that were changed or deleted.

    Args:
        told: What was met.
        option: Of the input, that skips it.
    """
    return InputError(
        f"rows of the table were changed or deleted, and its log cannot be followed past that ({told}). Either "
        f"set `input.options: {{{option}: true}}`: whatever such a commit changes or adds is then not scored; "
        "or score all that the table holds now with --overwrite; a merged table (output.mode) can have changes "
        "followed, with input.changes: follow"
    )


def skips_changes(options: dict[str, Any], option: str) -> bool:
    """Whether the input's options set one that skips, in whatever spelling."""
    return any(name.lower() == option.lower() and str(value).lower() == "true" for name, value in options.items())


def tell_skipped(options: dict[str, Any]) -> list[str]:
    """Warns of what the input's options leave out."""
    return [
        f"input.options.{option} is set: what commits that change or delete rows have added is not scored"
        for option in _SKIPS
        if skips_changes(options, option)
    ]


def is_bounded(options: dict[str, Any]) -> bool:
    """Whether the input's options bound what is read at once, whatever size gristmill wants."""
    return any(name.lower() in _BOUNDS for name in options)


def takes_all(options: dict[str, Any]) -> bool:
    """Whether all that a table holds will be scored: nothing is skipped, or left out at the start."""
    some = {"ignoredeletes", "startingversion", "startingtimestamp", *(name.lower() for name in _SKIPS)}
    return not any(name.lower() in some for name in options)


def decides_rows(option: str) -> bool:
    """Whether an option of the input says which rows there are, and not only how new ones are found."""
    return option.lower() not in _HOW_TO_FOLLOW
