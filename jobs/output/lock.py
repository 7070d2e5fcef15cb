"""One driver on an output at a time, and no lock that outlives its driver.

On a disk it is the kernel's lock, which ends with its process. Elsewhere it is a lease: a small file that its driver
renews; one that was not renewed for a while is free to take. Whoever takes it watches it first for as long as a driver
takes to renew it: neither a clock that is wrong nor a store that once did not answer makes it free. It is taken by a
file of one's own, whose name comes after those of all leases before: so a renewal that arrives late replaces nobody's
but its own, on every store and without a conditional write. A driver that stood still for so long (a machine that was
suspended) may have lost it: it looks before each commit, and ends.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from jobs.errors import BusyError
from jobs.folder import Folder

_LEASE_S = 90.0
_RENEW_S = 20.0
_SETTLE_S = 5.0  # two drivers that found the lease free at the same moment both wrote theirs by then
_LOOKS, _LOOK_S = 4, 0.25  # at a lease that seems to be gone: a store may have failed to find it
_PATIENCE_S = 1.25 * _RENEW_S  # of a commit with a lease that seems to have ended
_JOIN_S = 10.0
_LEASES, _SUFFIX = "-leases", ".json"
_COMMIT_S = 5.0  # what a commit takes at most: a lease that ends sooner is not enough for it


@dataclass(frozen=True)
class Claim:
    """That an output is this driver's, for whoever is about to commit to it.

    Plain values: it goes along where Spark Connect sends what scores an increment.

    Args:
        path: The output directory.
        home: The directory of leases inside.
        owner: The name of its lease there; empty for a lock of the kernel's, which nobody can take away.
    """

    path: str = ""
    home: str = ""
    owner: str = ""

    def fault(self) -> BusyError | None:
        """Why the output is this driver's no more; None if it is."""
        if not self.owner:
            return None
        folder, until = Folder(self.path), time.monotonic() + _PATIENCE_S
        while True:
            try:
                last, note = _find_last(folder, self.home)
            except OSError as error:
                return BusyError(f"the lock of output.path {self.path} cannot be read, so it may be lost: {error}")
            patient = time.monotonic() < until
            if last > self.owner or (last < self.owner and not patient):
                return BusyError(
                    f"output.path {self.path} was taken over by {_who(note)}: this driver did not renew its lock in "
                    "time. It commits nothing more; what it committed before stays"
                )
            if last == self.owner and note.get("until", 0) >= time.time() + _COMMIT_S:
                return None
            if not patient:
                return BusyError(
                    f"the lock of output.path {self.path} could not be renewed, so any driver may take it; this one "
                    "commits nothing more"
                )
            time.sleep(_LOOK_S)  # it may be renewed in a moment: the clock has taken a step, or the lease was not found

    def check(self) -> None:
        """Raise if the output is this driver's no more.

        Raises:
            BusyError: It is not.
        """
        if fault := self.fault():
            raise fault


@contextlib.contextmanager
def hold_lock(folder: Folder, name: str, on_lost: Callable[[], None] = lambda: None) -> Iterator[Claim]:
    """Be the only driver while the body runs.

    Args:
        folder: The output directory.
        name: Path of the lock inside; leases are in a directory beside it.
        on_lost: Is called once the lock is another driver's, every second, on a thread of its own.

    Raises:
        BusyError: Another driver works there.
    """
    with _hold_file(folder, name) if folder.is_disk else Lease(folder, f"{name}{_LEASES}", on_lost) as claim:
        yield claim


@contextlib.contextmanager
def _hold_file(folder: Folder, name: str) -> Iterator[Claim]:
    folder.make(name.rpartition("/")[0])
    lock = FileLock(folder.local_path(name))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy(folder, _read_note(folder, f"{name}.json")) from error
    try:
        folder.write_json(f"{name}.json", _note())
        yield Claim()
    finally:
        lock.release()


class Lease:
    """A lock as a file with a time by which its driver must have renewed it.

    Args:
        folder: The output directory.
        home: The directory of leases inside.
        on_lost: See `hold_lock`.
        lease_s: How long it is held without being renewed.
        renew_s: It is renewed so often.
        settle_s: Drivers that found it free at the same moment have all written theirs by then.
        watch_s: How long it is watched before it is taken over.
    """

    def __init__(
        self,
        folder: Folder,
        home: str,
        on_lost: Callable[[], None] = lambda: None,
        *,
        lease_s: float = _LEASE_S,
        renew_s: float = _RENEW_S,
        settle_s: float = _SETTLE_S,
        watch_s: float | None = None,
    ) -> None:
        self._folder, self._home, self._on_lost = folder, home, on_lost
        self._lease_s, self._renew_s, self._settle_s = lease_s, renew_s, settle_s
        self._watch_s = 1.5 * renew_s if watch_s is None else watch_s
        self._owner = ""
        self._until = 0.0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name="gristmill-lease", daemon=True)

    def __enter__(self) -> Claim:
        self._folder.make(self._home)
        self._owner = f"{_number_of(self._check_free()) + 1:09d}-{uuid.uuid4().hex[:12]}"
        self._renew()
        time.sleep(self._settle_s)
        last, note = _find_last(self._folder, self._home)
        if last > self._owner:
            self._folder.delete_files([self._path])
            raise _busy(self._folder, note)
        self._take_away_older()
        self._renewer.start()
        return Claim(self._folder.path, self._home, self._owner)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join(_JOIN_S)  # a store that does not answer holds nobody up
        with contextlib.suppress(OSError):  # it ends by itself
            if self.is_mine():
                self._folder.write_json(self._path, {"released": True})  # it stays: the next one's name comes after it

    @property
    def _path(self) -> str:
        return f"{self._home}/{self._owner}{_SUFFIX}"

    def is_mine(self) -> bool:
        """No other driver has taken it, as it may once it was not renewed in time.

        Raises:
            OSError: The store does not answer.
        """
        last, _ = _find_last(self._folder, self._home)
        if last < self._owner:  # ours is gone: nobody else's as long as it has not ended
            return _now_s() < self._until
        return last == self._owner

    def _check_free(self) -> str:
        """A lease that is there, even one that has ended, is not renewed as long as one looks; returns its name.

        Raises:
            BusyError: Another driver holds it.
            OSError: The store does not answer, so that nobody knows.
        """
        found = last, note = _find_last(self._folder, self._home)
        if note.get("released"):
            return last
        left_s = note.get("until", 0) - time.time()
        if 0 < left_s <= self._lease_s:
            raise _busy(self._folder, note)
        until = time.monotonic() + (
            self._watch_s if left_s <= 0 else self._lease_s
        )  # no lease lasts longer: a clock is off
        while last and time.monotonic() < until:
            time.sleep(min(self._watch_s, 1.0) / 4)
            if (now := _find_last(self._folder, self._home)) != found:
                raise _busy(self._folder, now[1])
        return last

    def _take_away_older(self) -> None:
        with contextlib.suppress(OSError):
            for name in self._folder.entries(self._home):
                if name.removesuffix(_SUFFIX) < self._owner:
                    self._folder.delete(f"{self._home}/{name}")

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s) and self._try_to_renew():
            pass
        while not self._ended.is_set():
            self._on_lost()
            self._ended.wait(1.0)

    def _try_to_renew(self) -> bool:
        """False once it is lost; a store that fails now may answer the next time."""
        try:
            if not self.is_mine():
                return False
            self._renew()
        except OSError:
            return _now_s() < self._until
        return True

    def _renew(self) -> None:
        until = _now_s() + self._lease_s
        told = {"until": time.time() + self._lease_s, "renewal": uuid.uuid4().hex}
        self._folder.write_json(self._path, {**_note(), **told})
        self._until = until


def _now_s() -> float:
    """Seconds on a clock that takes no steps, and goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _note() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read_note(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return folder.read_json(name)
    except (OSError, ValueError):
        return {}


def _find_last(folder: Folder, home: str) -> tuple[str, dict[str, Any]]:
    """The name and the note of the last lease; "" and {} where several looks find none. A torn note has ended.

    Raises:
        OSError: The store does not answer.
    """
    for _ in range(_LOOKS):
        names = [name for name in folder.entries(home, must_exist=True) if name.endswith(_SUFFIX)]
        if names:
            try:
                found = folder.read_json(f"{home}/{max(names)}")
                return max(names).removesuffix(_SUFFIX), found if isinstance(found, dict) else {"torn": True}
            except ValueError:
                return max(names).removesuffix(_SUFFIX), {"torn": True}
            except FileNotFoundError:  # it was taken away between two looks, or the store has lied
                pass
        time.sleep(_LOOK_S)
    return "", {}


def _number_of(name: str) -> int:
    return int(name.partition("-")[0] or 0)


def _busy(folder: Folder, note: dict[str, Any]) -> BusyError:
    return BusyError(
        f"output.path {folder.path} is being worked on by {_who(note)}; wait for it to end, or end it (a lock that a "
        "killed driver left is taken over by itself)"
    )


def _who(note: dict[str, Any]) -> str:
    if "pid" not in note:
        return "another process"
    return f"process {note['pid']} on {note['host']}, since {note['since']}"
