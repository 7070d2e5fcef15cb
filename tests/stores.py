"""File systems for tests: local files behind a store that lies, tears, delays, forgets to answer, stalls and kills.

What Spark would write is written by the tests; all that gristmill does on the output goes through here.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow.fs as pafs
import pytest

from jobs.folder import Folder
from jobs.output.lock import Lease

Kind = Literal["disk", "hdfs", "store"]


class Killed(Exception):
    """The driver is no more: whatever it tries fails so."""


class Faults:
    """What happens at each operation of one driver.

    Args:
        seed: Of what is drawn.
        kill_at: At the so-manieth operation; the driver is dead from then on.
        stall_at: From there on it stands still, with all its threads, until `wake` is set.
        lies: The share of looks that find nothing, and of operations that fail.
    """

    def __init__(self, seed: int, *, kill_at: int = -1, stall_at: int = -1, lies: float = 0.0) -> None:
        self._random, self._kill_at, self._stall_at, self._lies = random.Random(seed), kill_at, stall_at, lies
        self.operations = 0
        self.stalled, self.wake, self._lock = threading.Event(), threading.Event(), threading.Lock()

    def strike(self, *, writes: bool = False) -> bool:
        """Count an operation; True where the store has to say that it found nothing.

        Raises:
            Killed, OSError: As drawn.
        """
        with self._lock:
            self.operations += 1
            number, drawn = self.operations, self._random.random()
        if 0 <= self._kill_at <= number:
            raise Killed
        if 0 <= self._stall_at <= number:  # its threads too
            self.stalled.set()
            self.wake.wait(60)
        if drawn < self._lies / 2:
            raise OSError("no route to host")
        return not writes and drawn < self._lies

    def tears(self) -> bool:
        """The driver is killed in the middle of this write."""
        return self.operations + 1 == self._kill_at


class OneLie(Faults):
    """A store that says once that it finds nothing.

    Args:
        at: At the so-manieth operation, if that is a look.
    """

    def __init__(self, at: int) -> None:
        super().__init__(0)
        self._at = at

    def strike(self, *, writes: bool = False) -> bool:
        super().strike(writes=writes)
        return not writes and self.operations == self._at


class Store(pafs.FileSystemHandler):  # type: ignore[misc]
    """Local files, seen through faults."""

    def __init__(self, faults: Faults) -> None:
        self._fs, self._faults = pafs.LocalFileSystem(), faults

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        if self._faults.strike():
            return [pafs.FileInfo(path, pafs.FileType.NotFound) for path in paths]
        return list(self._fs.get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        if self._faults.strike():  # as HDFS lists a directory about which its namenode does not answer
            if not selector.allow_not_found:
                raise FileNotFoundError(selector.base_dir)
            return []
        return list(self._fs.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._faults.strike(writes=True)
        self._fs.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._faults.strike(writes=True)
        if self._faults.tears():  # some of it is gone
            files = [f for f in self._fs.get_file_info(pafs.FileSelector(path, recursive=True)) if f.is_file]
            for file in files[: len(files) // 2]:
                self._fs.delete_file(file.path)
            return
        self._fs.delete_dir(path)

    def delete_file(self, path: str) -> None:
        self._faults.strike(writes=True)
        self._fs.delete_file(path)

    def move(self, source: str, to: str) -> None:
        self._faults.strike(writes=True)
        self._fs.move(source, to)

    def copy_file(self, source: str, to: str) -> None:
        self._faults.strike(writes=True)
        self._fs.copy_file(source, to)

    def open_input_stream(self, path: str) -> Any:
        self._faults.strike(writes=True)  # a file that is opened is there, or it is an error
        return self._fs.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self._faults.strike(writes=True)
        return self._fs.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._faults.strike(writes=True)
        if self._faults.tears():
            with self._fs.open_output_stream(path) as stream:
                stream.write(b'{"torn": ')
            raise Killed
        return self._fs.open_output_stream(path)

    delete_dir_contents = delete_root_dir_contents = open_append_stream = None  # nobody asks for them

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


_now = threading.local()


@contextlib.contextmanager
def driver_on(faults: Faults) -> Iterator[None]:
    """What this thread opens goes through these faults."""
    _now.faults = faults
    try:
        yield
    finally:
        _now.faults = None


def pretend(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> Clock:
    """Every folder is on a store of this kind, with the faults of whoever opens it; leases are short.

    Returns:
        The clock by which leases go.
    """
    monkeypatch.setattr(Folder, "is_disk", property(lambda _: kind == "disk"))
    monkeypatch.setattr(Folder, "renames", property(lambda _: kind != "store"))
    monkeypatch.setattr("jobs.folder._open", _open)
    short = functools.partial(Lease, lease_s=1.0, renew_s=0.1, settle_s=0.1, watch_s=0.3)
    monkeypatch.setattr("jobs.output.lock.Lease", short)
    for name, seconds in {"_COMMIT_S": 0.0, "_LOOK_S": 0.01, "_PATIENCE_S": 0.3}.items():
        monkeypatch.setattr(f"jobs.output.lock.{name}", seconds)
    clock = Clock()
    monkeypatch.setattr("jobs.output.lock.time", clock)
    return clock


class Clock:
    """The module `time`, with another time of day."""

    step_s = 0.0

    def time(self) -> float:
        return time.time() + self.step_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _open(path: str) -> tuple[Any, str]:
    faults = getattr(_now, "faults", None)
    return (pafs.PyFileSystem(Store(faults)) if faults else pafs.LocalFileSystem()), path


def overtake(folder: Folder, home: str = "_gristmill/lock-leases") -> None:
    """Another driver takes a lease over, as it may once it was not renewed in time."""
    (note,) = folder.entries(home)
    other = Lease(folder, home)
    other._owner = f"{int(note[:9]) + 1:09d}-other"
    other._renew()
    folder.delete(f"{home}/{note}")
