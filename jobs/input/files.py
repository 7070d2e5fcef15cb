"""The files of an input: which are read, which are not and why, what is left. Nothing is skipped in silence."""

from __future__ import annotations

import os
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import InputError
from jobs.folder import FileInfo, Folder
from jobs.input.checkpoint import SeenFile, path_of
from jobs.paths import GLOB, fixed_part, scheme_of

_SHOWN = 5
# What writers leave beside their data.
_MARKERS = re.compile(r"_SUCCESS|_(committed|started)_.*|\..*\.crc|_(common_)?metadata")


@dataclass(frozen=True)
class InputFiles:
    """What lies at an input's path as a run begins; all paths are absolute, without scheme and host.

    Args:
        root: The input's path, or what of it stands before its first wildcard.
        found: Every file below.
        taken: Those that Spark reads.
        schemes: Of their URIs.
    """

    root: str
    found: dict[str, FileInfo]
    taken: frozenset[str]
    schemes: frozenset[str] = frozenset()

    def left(self, seen: Iterable[SeenFile]) -> dict[str, int]:
        """Files that Spark reads and that are in no increment yet, with their sizes."""
        paths = sorted(self.taken - {file.path for file in seen})
        return {path: self.found[path].size if path in self.found else 0 for path in paths}


@dataclass(frozen=True)
class ReadFile:
    """A file as it was when an increment read it.

    Args:
        uri: As Spark names it.
        size: In bytes.
        changed_ms: When it was last written, in milliseconds since 1970.
        rows: How many it has; one without a row is not told.
        content: A hash of its rows, as far as the job needs them, in whatever order.
        malformed: Records of it that do not fit.
    """

    uri: str
    size: int
    changed_ms: int
    rows: int
    content: str
    malformed: int = 0

    @property
    def path(self) -> str:
        """Its path without scheme and host, spelt as a user would."""
        return path_of(self.uri)


def find_repeated(read: Iterable[ReadFile], known: Iterable[ReadFile]) -> dict[str, str]:
    """Files that have the size and the rows of another one: moved, renamed, copied, or linked to under a second name.

    Args:
        read: The files in question.
        known: Files that were read before.

    Returns:
        By the URI of each, that of the one that was read first.
    """
    first: dict[tuple[int, int, str], str] = {}
    for file in known:
        first.setdefault((file.size, file.rows, file.content), file.uri)
    repeated = {}
    for file in sorted(read, key=lambda file: file.uri):
        if (before := first.setdefault((file.size, file.rows, file.content), file.uri)) != file.uri:
            repeated[file.uri] = before
    return repeated


def list_input(path: str, uris: Iterable[str]) -> InputFiles:
    """Look at an input's path.

    Args:
        path: Of the settings, wildcards and all.
        uris: The files that Spark reads there.
    """
    uris = list(uris)
    return InputFiles(*find_files(path), frozenset(map(path_of, uris)), frozenset(map(scheme_of, uris)))


def find_files(path: str) -> tuple[str, dict[str, FileInfo]]:
    """The part of an input's path that stands before its first wildcard, and every file below it."""
    fixed = fixed_part(path)
    root = _absolute(fixed)
    return root, {f"{root.rstrip('/')}/{info.name}".rstrip("/"): info for info in Folder(fixed).walk()}


def find_gone(path: str, planned: Iterable[SeenFile]) -> list[SeenFile]:
    """Files that an increment was planned with and that are not there any more.

    Args:
        path: Of the settings.
        planned: The increment's files.

    Raises:
        InputError: Neither is any other file: that is a disk that is not mounted rather than a tidy input.
    """
    found = list_input(path, ()).found
    gone = [file for file in planned if file.path not in found]
    if gone and not found:
        raise InputError(
            f"input.path {path} holds no file any more, but an increment is planned with "
            f"{name_some([file.path for file in gone])}. Put them back, or mount what they are on; once there is any "
            "file, a run goes on without those that are gone"
        )
    return gone


def tell_unread(files: InputFiles, *, path: str, filtered: bool) -> list[str]:
    """Warnings about files that Spark does not read.

    Args:
        files: What is there.
        path: Of the settings; with wildcards in it, or a filter among the options, it says itself what is not read.
        filtered: There is such an option.
    """
    if GLOB.search(path) or filtered:
        return []
    unread = sorted(p for p in set(files.found) - files.taken if not _MARKERS.fullmatch(os.path.basename(p)))
    hidden = [p for p in unread if any(part[:1] in ("_", ".") for part in p[len(files.root) :].split("/"))]
    nested = sorted(set(unread) - set(hidden))
    warnings = []
    if hidden:
        warnings.append(f"not read, since Spark skips names that begin with _ or a dot: {name_some(hidden)}")
    if nested:
        warnings.append(
            f"not read, since they lie in subdirectories: {name_some(nested)}; set input.options.recursiveFileLookup"
        )
    return warnings


def tell_replaced(
    files: InputFiles, seen: Iterable[SeenFile], read: Iterable[ReadFile], looked: Sequence[tuple[int, float]]
) -> list[str]:
    """Warnings about files that were replaced after they had been scored, by newer ones or by older ones.

    Args:
        files: What is there.
        seen: What is in an increment, committed or planned.
        read: What is in a committed one, as it was when it was read; an earlier gristmill has not kept that.
        looked: Of each committed increment, where its files end in the source's log, and when it was first looked at,
            in milliseconds since 1970; in order.
    """
    as_read = {file.path: file for file in read}

    def is_replaced(file: SeenFile) -> bool:
        at = bisect_left(looked, file.offset, key=lambda increment: increment[0])
        if at == len(looked) or file.path not in files.found:
            return False
        found = files.found[file.path]
        if known := as_read.get(file.path):
            return found.size != known.size or _differs(found, known.changed_ms)
        # One that was mended before it was read is newer than it was planned.
        return _differs(found, file.changed_ms) and not file.changed_ms < found.changed_ns / 1e6 <= looked[at][1]

    replaced = sorted(file.path for file in seen if is_replaced(file))
    if not replaced:
        return []
    return [
        f"replaced in place after they were scored, and not scored again: {name_some(replaced)}; give new content a "
        "new name, or start afresh with --overwrite"
    ]


def tell_back(files: InputFiles, gone: Iterable[str]) -> list[str]:
    """Warnings about files that were gone when they were to be scored, and that are there again.

    Args:
        files: What is there.
        gone: URIs out of committed increments.
    """
    back = sorted({path_of(uri) for uri in gone} & set(files.found))
    if not back:
        return []
    return [
        f"gone when they were to be scored, back now, and not scored: {name_some(back)}; give them new names, or start "
        "afresh with --overwrite"
    ]


def name_some(paths: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _differs(found: FileInfo, changed_ms: int) -> bool:
    if found.changed_ns % 1_000_000_000 == 0:  # a store that tells whole seconds alone
        return found.changed_ns // 1_000_000_000 != changed_ms // 1000
    return found.changed_ns // 1_000_000 != changed_ms


def _absolute(path: str) -> str:
    """A path of the settings as Spark's URIs have it: without scheme and host, `.`, `..` and slashes at the end."""
    scheme, colon, rest = path.partition(":")
    if not colon or "/" in scheme:
        return os.path.abspath(path)
    below = rest[2:].partition("/")[2] if rest.startswith("//") else rest
    return posixpath.normpath("/" + below.lstrip("/"))


def tell_malformed(files: Mapping[str, int]) -> list[str]:
    """A warning about records that do not fit, by their files' URIs."""
    if not files:
        return []
    named = [f"{path_of(uri)} ({count:,})" for uri, count in files.items()]
    return [
        f"{sum(files.values()):,} records are malformed, or hold a value that does not fit its column's type, and "
        f"failed as `malformed`: {name_some(named)}"
    ]


def tell_swallowing(files: Mapping[str, int]) -> list[str]:
    """A warning about rows of CSV files that seem to hold others, by the files' URIs."""
    if not files:
        return []
    named = [f"{path_of(uri)} ({count:,})" for uri, count in sorted(files.items())]
    return [
        f"{sum(files.values()):,} values seem to hold whole lines of a table, as after a quote that is not closed: "
        f"{name_some(named)}; mend it, or set input.options.multiLine: false if no value has several lines"
    ]
