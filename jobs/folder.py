"""Small files beside the output, wherever it is: a disk, S3, GCS, Azure or HDFS. Tables are Spark's, not ours."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.fs as pafs

from jobs.errors import OutputError
from jobs.paths import ONE_SCHEME

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DATABRICKS = ("/dbfs/", "/Volumes/", "/Workspace/")  # on a cluster's nodes: an object store that looks like a disk
# Of what FUSE mounts, these rename a directory in one step, and lock files; all else is taken for an object store.
_FUSE_DISKS = {"fuseblk", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mergerfs", "fuse.fuse-overlayfs"}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
_PUT_WHOLE = tuple(kind for name in ("S3FileSystem", "GcsFileSystem") if (kind := getattr(pafs, name, None)))
_READERS = 32  # small files that are read at a time: on an object store each takes a tenth of a second


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder.

    Args:
        name: Its path from the folder on.
        size: In bytes.
        changed_ns: When it was last written, in nanoseconds since 1970.
    """

    name: str
    size: int
    changed_ns: int


class Folder:
    """A directory that Spark writes to, with the few file operations that Spark's DataFrame API lacks.

    Args:
        path: A path or URI as Spark takes it.

    Raises:
        OutputError: A scheme that pyarrow cannot reach.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        try:
            self._fs, self._root = _open(self.path)
        except (OSError, ValueError, ImportError) as error:
            raise OutputError(f"cannot reach {path}: {error}") from error

    def __truediv__(self, name: str) -> str:
        """The path of something inside, as Spark takes it."""
        return f"{self.path}/{name}"

    def entries(self, name: str = "", *, must_exist: bool = False) -> list[str]:
        """Names inside a subdirectory; [] where there is none.

        Raises:
            FileNotFoundError: There is none, and it must exist: some stores call it absent that do not answer.
        """
        selector = pafs.FileSelector(self._join(name), allow_not_found=not must_exist)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(self._join(name)).type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether the folder itself is a file instead."""
        return self._fs.get_file_info(self._root).type == pafs.FileType.File

    def walk(self, name: str = "", *, must_exist: bool = False) -> list[FileInfo]:
        """Every file below, however deep; [] where there is no such folder. A file is the only one in itself.

        Raises:
            FileNotFoundError: As `entries`.
        """
        root = self._join(name)
        if not name and self.is_file():
            found = [self._fs.get_file_info(root)]
        else:
            selector = pafs.FileSelector(root, recursive=True, allow_not_found=not must_exist)
            found = [info for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]
        start = len(root.rstrip("/")) + 1
        return [FileInfo(info.path[start:], info.size, info.mtime_ns or 0) for info in found]

    def sizes(self) -> dict[str, int]:
        """Every file below, with its size in bytes; the folder is there."""
        return {file.name: file.size for file in self.walk(must_exist=True)}

    def read_text(self, name: str) -> str:
        with self._fs.open_input_stream(self._join(name)) as stream:
            return stream.read().decode()

    @contextlib.contextmanager
    def reading(self, name: str, *, start: int = 0) -> Iterator[BinaryIO]:
        """A file, to be read from a byte on; an empty name is the folder itself, where it is a file."""
        path = self._join(name)
        with self._fs.open_input_file(path) if start else self._fs.open_input_stream(path) as stream:
            if start:
                stream.seek(start)
            yield stream

    def open(self, name: str) -> pa.NativeFile:
        """A file, to be read here and there."""
        return self._fs.open_input_file(self._join(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to be written piece by piece, which is there once all of it is; as `write_json`."""
        target = self._join(name)
        draft = target if isinstance(self._fs, _PUT_WHOLE) else f"{target}.tmp"
        with self._fs.open_output_stream(draft) as stream:
            yield stream
        if self.is_local:
            _sync(Path(draft))
        if draft != target:
            self._fs.move(draft, target)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def find_json(self, name: str) -> Any:
        """A small file; None where there is none. It is opened, since a store that fails may say that there is none.

        Raises:
            OSError: It cannot be read, whether it is there or not.
            OutputError: It is torn.
        """
        try:
            return self.read_json(name)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"{self / name} is no whole JSON ({error}); put it back, or take it away") from error

    def read_all_json(self, names: list[str]) -> list[Any]:
        """Many small files, None for those that are not there."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.find_json, names))

    def write_json(self, name: str, value: Any, *, indent: int | None = 2) -> None:
        """Write a file so that no reader ever sees half of it, and that no power cut leaves half of it.

        It is written under another name, on a disk synced, and renamed; some object stores put a file there whole.
        """
        target, told = self._join(name), json.dumps(value, indent=indent, ensure_ascii=False).encode() + b"\n"
        draft = target if isinstance(self._fs, _PUT_WHOLE) else f"{target}.tmp"
        if draft != target:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        self._write(draft, told)
        if draft != target:
            try:
                self._fs.move(draft, target)
            except OSError:
                if self.is_disk or not self.is_local:
                    raise
                self._write(target, told)  # a mounted object store that renames nothing puts files there whole
                self._fs.delete_file(draft)
        if self.is_local:
            _sync(Path(target).parent)

    def _write(self, path: str, content: bytes) -> None:
        with self._fs.open_output_stream(path) as stream:
            stream.write(content)
        if self.is_local:
            _sync(Path(path))

    def sync(self, name: str) -> None:
        """Have a disk keep a directory with all it holds, whatever happens to the machine; a store has done so."""
        if self.is_local:
            for folder, _, files in os.walk(self._join(name)):
                for file in files:
                    _sync(Path(folder, file))
                _sync(Path(folder))
            for above in Path(name).parents:  # they were made for it
                _sync(Path(self._root, above))

    @property
    def is_local(self) -> bool:
        """On this machine's disks, as far as it can tell."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    @cached_property
    def is_disk(self) -> bool:
        """On a disk of this machine's, or one that behaves so; an object store that is mounted does not."""
        return self.is_local and not is_mounted_store(self._root)

    @property
    def renames(self) -> bool:
        """A directory can be renamed here in one step; an object store has no such step, mounted or not."""
        return self.is_disk or isinstance(self._fs, pafs.HadoopFileSystem)

    def local_path(self, name: str = "") -> Path:
        """Where something lies on this machine's disks."""
        return Path(self._join(name))

    def make(self, name: str = "") -> None:
        """Make a directory, and those above it."""
        self._fs.create_dir(self._join(name), recursive=True)

    def rename(self, name: str, to: str) -> None:
        """Rename a directory in one step; there must be nothing at `to`."""
        self.make(to.rpartition("/")[0])
        self._fs.move(self._join(name), self._join(to))
        if self.is_local:
            _sync(Path(self._join(to)).parent)

    def copy_all(self, name: str, to: str, files: Iterable[str]) -> None:
        """Copy files of one directory to another."""
        wanted = list(files)
        for parent in {file.rpartition("/")[0] for file in wanted}:
            self.make(f"{to}/{parent}".rstrip("/"))
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda f: self._fs.copy_file(self._join(f"{name}/{f}"), self._join(f"{to}/{f}")), wanted))

    def move_file(self, name: str, to: str) -> None:
        """Give a file another name."""
        self._fs.move(self._join(name), self._join(to))

    def delete_files(self, names: Iterable[str]) -> None:
        """Delete files, without a look at them before; nothing happens to those that are not there."""

        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(self._join(name))

        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(delete, names))

    def delete(self, name: str) -> None:
        """Delete a file or a directory with all it holds; nothing happens where there is none."""
        path = self._join(name)
        match self._fs.get_file_info(path).type:
            case pafs.FileType.Directory:
                self._fs.delete_dir(path)
            case pafs.FileType.File:
                self._fs.delete_file(path)

    def _join(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def is_mounted_store(path: str) -> bool:
    """A path is on an object store that is mounted as if it were a disk: its directories are renamed file by file,
    and its locks hold on one machine or not at all."""
    place = os.path.realpath(path)
    if sys.platform == "linux" and f"{place}/".startswith(_DATABRICKS):
        return True
    mounts = [part for part in psutil.disk_partitions(all=True) if _is_below(place, part.mountpoint)]
    kind = max(reversed(mounts), key=lambda part: len(part.mountpoint)).fstype if mounts else ""  # the last is on top
    return "fuse" in kind and kind not in _FUSE_DISKS


def _is_below(place: str, folder: str) -> bool:
    return place == folder or place.startswith(f"{folder.rstrip('/')}/")


def _sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or which names a directory holds, as far as a mount can do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_SYNC | {errno.ENOENT}:  # somebody has taken away what was not ours
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def check_scheme(spark: SparkSession, path: str, *, called: str = "output.path") -> None:
    """Refuse a path that would mean one place to Spark and another one here.

    Args:
        spark: The session.
        path: It.
        called: The key that names it.

    Raises:
        OutputError: The path has no scheme, and the cluster's default filesystem is not a disk.
    """
    if "://" in path or path.startswith(("dbfs:", "file:")):
        return
    context = getattr(spark, "_jsc", None)  # classic Spark alone; Connect does not tell
    default = context.hadoopConfiguration().get("fs.defaultFS") if context is not None else None
    if default and not default.startswith(("file:", "dbfs:")):
        raise OutputError(
            f"{called} {path!r} has no scheme, and this cluster's default filesystem is {default}; write it in "
            f"full, as in {default.rstrip('/')}/{path.lstrip('/')}"
        )


def _open(path: str) -> tuple[pafs.FileSystem, str]:
    scheme, colon, rest = path.partition(":")
    if not colon or len(scheme) < 2 or "/" in scheme:  # a time of the day in a name is no scheme
        return pafs.LocalFileSystem(), path
    if scheme == "dbfs":
        place = f"/{rest.lstrip('/')}"
        return pafs.LocalFileSystem(), place if place.startswith("/Volumes/") else f"/dbfs{place}"
    if scheme == "file":
        return pafs.LocalFileSystem(), f"/{rest.lstrip('/')}"
    fs, root = pafs.FileSystem.from_uri(f"{ONE_SCHEME.get(scheme, scheme)}:{rest}")
    return fs, root.rstrip("/")
