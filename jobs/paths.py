"""One place, however it is spelt: paths of inputs and outputs compared."""

from __future__ import annotations

import os
import posixpath
import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

GLOB = re.compile(r"[*?\[{\\]")  # what makes a path a pattern
_SAME = {"s3a": "s3", "s3n": "s3", "abfss": "abfs"}


def canonical(path: str) -> str:
    """A path as all spellings of it have it: on this machine's disks absolute, and with its links followed."""
    scheme, rest = _split(path)
    if scheme != "file":
        return f"{_SAME.get(scheme, scheme)}://{posixpath.normpath(rest.lstrip('/'))}"
    fixed = fixed_part(rest)
    return posixpath.normpath(posixpath.join(os.path.realpath(fixed), rest[len(fixed) :].lstrip("/")))


def is_here(path: str) -> bool:
    """A path is on this machine's disks; one without a scheme, only if there is something at it."""
    scheme, rest = _split(path)
    return scheme == "file" and (path.startswith("file:") or os.path.exists(fixed_part(rest)))


def fixed_part(path: str) -> str:
    """What of a path stands before its first wildcard."""
    glob = GLOB.search(path)
    if not glob:
        return path
    return path[: path.rfind("/", 0, glob.start()) + 1].rstrip("/") or ("/" if path.startswith("/") else ".")


def lies_in(path: str, folder: str, *, recursive: bool = False) -> bool:
    """A place is read by whoever reads a folder.

    Args:
        path: The place.
        folder: The folder, wildcards and all.
        recursive: What is below the part before the wildcards is looked at too, however deep.
    """
    place, wanted = PurePosixPath(canonical(path)), PurePosixPath(canonical(folder))
    if not GLOB.search(folder):
        return place == wanted or wanted in place.parents
    fits = any(
        len(candidate.parts) == len(wanted.parts) and all(map(fnmatchcase, candidate.parts, wanted.parts))
        for candidate in (place, *place.parents)
    )
    return fits or (recursive and PurePosixPath(canonical(fixed_part(folder))) in place.parents)


def _split(path: str) -> tuple[str, str]:
    """A scheme, `file` where there is none, and what comes after it."""
    scheme, colon, rest = path.partition(":")
    if not colon or "/" in scheme or len(scheme) < 2:
        return "file", path
    return scheme, "/" + rest.lstrip("/") if scheme == "file" else rest
