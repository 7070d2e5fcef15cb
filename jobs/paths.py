"""One place, however it is spelt: paths of inputs and outputs compared."""

from __future__ import annotations

import os
import posixpath
import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

GLOB = re.compile(r"[*?\[{\\]")  # what makes a path a pattern
_BRACES = re.compile(r"\{([^{}]*)\}")  # the innermost first
ONE_SCHEME = {"s3a": "s3", "s3n": "s3", "abfss": "abfs"}  # to pyarrow


def as_uri_has_it(path: str) -> str:
    """A path as all spellings of it have it that are one URI to Spark: on this machine's disks, it is absolute.

    Links are not followed, nor are schemes taken for one another: Spark would take the files for others.
    """
    scheme, rest = _split(path)
    if scheme == "file":
        return os.path.normpath(os.path.join(os.getcwd(), rest))
    host, slash, below = rest.removeprefix("//").partition("/")
    return f"{scheme}://{host}{slash}{posixpath.normpath(below).lstrip('/') if below.strip('/') else ''}"


def is_relative(path: str) -> bool:
    """A path that is written from the working directory on."""
    return "://" not in path and not path.startswith(("/", "dbfs:", "file:"))


def canonical(path: str) -> str:
    """The place that a path leads to, whatever the scheme or the links on the way."""
    told = as_uri_has_it(path)
    scheme, rest = _split(told)
    if scheme != "file":
        return f"{ONE_SCHEME.get(scheme, scheme)}:{rest}"
    fixed = fixed_part(told)
    return os.path.normpath(os.path.join(os.path.realpath(fixed), told[len(fixed) :].lstrip("/")))


def is_here(path: str) -> bool:
    """A path is on this machine's disks; one without a scheme, only if there is something at it."""
    scheme, rest = _split(path)
    return scheme == "file" and (path.startswith("file:") or os.path.exists(fixed_part(rest)))


def scheme_of(path: str) -> str:
    """The scheme that a path is written with; `file` where it has none, whatever that is to Spark."""
    return _split(path)[0]


def fixed_part(path: str) -> str:
    """What of a path stands before its first wildcard."""
    glob = GLOB.search(path)
    if not glob:
        return path
    return path[: path.rfind("/", 0, glob.start()) + 1].rstrip("/") or ("/" if path.startswith("/") else ".")


def lies_in(path: str, folder: str) -> bool:
    """A place below a folder is read by whoever reads the folder.

    Args:
        path: The place.
        folder: The folder, wildcards and all: what is below a place that they fit is looked at too.
    """
    return any(_lies_in(path, alternative) for alternative in _alternatives(folder))


def _lies_in(path: str, folder: str) -> bool:
    place, wanted = PurePosixPath(canonical(path)), PurePosixPath(canonical(folder))
    return place != wanted and any(
        len(candidate.parts) == len(wanted.parts) and all(map(_fits, candidate.parts, wanted.parts))
        for candidate in (place, *place.parents)
    )


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with `{a,b}` stands for."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for part in found[1].split(",") for whole in _alternatives(before + part + after)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) if GLOB.search(pattern) else name == pattern


def _split(path: str) -> tuple[str, str]:
    """A scheme, `file` where there is none, and what comes after it."""
    scheme, colon, rest = path.partition(":")
    if not colon or "/" in scheme or len(scheme) < 2:
        return "file", path
    return scheme, "/" + rest.lstrip("/") if scheme == "file" else rest
