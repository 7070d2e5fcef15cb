"""The files of an input: which are read, which are not and why, what is left. Nothing is skipped in silence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from jobs.checkpoint import SeenFile, path_of
from jobs.files import FileInfo, Folder

_SHOWN = 5
_GLOB = re.compile(r"[*?\[{]")
# What writers leave beside their data.
_MARKERS = re.compile(r"_SUCCESS|_(committed|started)_.*|\..*\.crc|_(common_)?metadata")


@dataclass(frozen=True)
class InputFiles:
    """What lies at an input's path as a run begins.

    Args:
        root: The path, or what of it stands before its first wildcard.
        found: Every file below, by its path without scheme and host.
        taken: Those that Spark reads.
    """

    root: str
    found: dict[str, FileInfo]
    taken: frozenset[str]

    def bytes_of(self, paths: Iterable[str]) -> int:
        return sum(self.found[path].size for path in paths if path in self.found)

    def left(self, seen: Iterable[SeenFile]) -> list[str]:
        """Files that Spark reads and that are in no increment yet."""
        return sorted(self.taken - {file.path for file in seen})


def list_input(path: str, uris: Iterable[str]) -> InputFiles:
    """Look at an input's path.

    Args:
        path: Of the settings, wildcards and all.
        uris: The files that Spark reads there.
    """
    root = _fixed_part(path)
    folder = Folder(root)
    start = (path_of(root) if "://" in root else os.path.abspath(urlsplit(root).path or root)).rstrip("/")
    found = {f"{start}/{info.name}".rstrip("/"): info for info in folder.walk()}
    return InputFiles(root, found, frozenset(path_of(uri) for uri in uris))


def tell_unread(files: InputFiles, *, path: str, filtered: bool) -> list[str]:
    """Warnings about files that Spark does not read.

    Args:
        files: What is there.
        path: Of the settings; with wildcards in it, or a filter among the options, it says itself what is not read.
        filtered: There is such an option.
    """
    if path != files.root or filtered:
        return []
    unread = sorted(p for p in set(files.found) - files.taken if not _MARKERS.fullmatch(os.path.basename(p)))
    start = len(os.path.commonpath([files.root, *unread])) if unread and files.root.startswith("/") else 0
    hidden = [p for p in unread if any(part[:1] in ("_", ".") for part in p[start:].split("/"))]
    nested = sorted(set(unread) - set(hidden))
    warnings = []
    if hidden:
        warnings.append(f"not read, since Spark skips names that begin with _ or a dot: {name_some(hidden)}")
    if nested:
        warnings.append(
            f"not read, since they lie in subdirectories: {name_some(nested)}; set input.options.recursiveFileLookup"
        )
    return warnings


def tell_replaced(files: InputFiles, seen: Iterable[SeenFile]) -> list[str]:
    """Warnings about files that were written anew after they had been scored."""
    replaced = sorted(
        file.path for file in seen if file.path in files.found and _is_newer(files.found[file.path], file)
    )
    if not replaced:
        return []
    return [
        f"replaced in place after they were scored, and not scored again: {name_some(replaced)}; give new content a "
        "new name, or start afresh with --overwrite"
    ]


def name_some(paths: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _is_newer(found: FileInfo, seen: SeenFile) -> bool:
    if found.changed_ns % 1_000_000_000 == 0:  # a store that tells whole seconds alone
        return found.changed_ns // 1_000_000_000 != seen.changed_ms // 1000
    return found.changed_ns // 1_000_000 != seen.changed_ms


def _fixed_part(path: str) -> str:
    glob = _GLOB.search(path)
    return path[: path.rfind("/", 0, glob.start())] or "/" if glob else path
