"""One driver on an output at a time, and no lock that outlives its driver.

On a disk it is the kernel's lock, which ends with its process. Elsewhere it is a lease: a small file that its driver
renews; one that was not renewed for a while is free to take. Whoever takes it watches it first for as long as a driver
takes to renew it: neither a clock that is wrong nor a store that once did not answer makes it free. A driver that stood
still for so long (a machine that was suspended) may have lost it: it looks before each commit, and ends.
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
_COMMIT_S = 5.0  # what a commit takes at most: a lease that ends sooner is not enough for it


@dataclass(frozen=True)
class Claim:
    """That an output is this driver's, for whoever is about to commit to it.

    Plain values: it goes along where Spark Connect sends what scores an increment.

    Args:
        path: The output directory.
        name: Path of the lease inside.
        owner: Who holds it; None for a lock of the kernel's, which nobody can take away.
    """

    path: str = ""
    name: str = ""
    owner: str | None = None

    def fault(self) -> BusyError | None:
        """Why the output is this driver's no more; None if it is."""
        if self.owner is None:
            return None
        folder, until = Folder(self.path), time.monotonic() + _PATIENCE_S
        while True:
            try:
                note = _find_lease(folder, self.name)
            except OSError as error:
                return BusyError(f"the lock of output.path {self.path} cannot be read, so it may be lost: {error}")
            patient = time.monotonic() < until
            if note.get("owner", self.owner if patient else None) != self.owner:
                return BusyError(
                    f"output.path {self.path} was taken over by {_who(note)}: this driver did not renew its lock in "
                    "time. It commits nothing more; what it committed before stays"
                )
            if note.get("until", 0) >= time.time() + _COMMIT_S:
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
        name: Path of the lock inside.
        on_lost: Is called once the lock is another driver's, every second, on a thread of its own.

    Raises:
        BusyError: Another driver works there.
    """
    with _hold_file(folder, name) if folder.is_local else Lease(folder, name, on_lost) as claim:
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
    """A lock as a file with a time by which its driver must have renewed it."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        on_lost: Callable[[], None] = lambda: None,
        *,
        lease_s: float = _LEASE_S,
        renew_s: float = _RENEW_S,
        settle_s: float = _SETTLE_S,
        watch_s: float | None = None,
    ) -> None:
        self._folder, self._name, self._on_lost = folder, name, on_lost
        self._lease_s, self._renew_s, self._settle_s = lease_s, renew_s, settle_s
        self._watch_s = 1.5 * renew_s if watch_s is None else watch_s
        self._claim = Claim(folder.path, name, uuid.uuid4().hex)
        self._until = 0.0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name="gristmill-lease", daemon=True)

    def __enter__(self) -> Claim:
        self._check_free()
        self._renew()
        time.sleep(self._settle_s)
        if not self.is_mine():
            raise _busy(self._folder, _read_note(self._folder, self._name))
        self._renewer.start()
        return self._claim

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join(_JOIN_S)  # a store that does not answer holds nobody up
        with contextlib.suppress(OSError):  # it ends by itself
            if self.is_mine():
                self._folder.delete(self._name)

    def is_mine(self) -> bool:
        """No other driver has taken it, as it may once it was not renewed in time.

        Raises:
            OSError: The store does not answer.
        """
        note = _find_lease(self._folder, self._name)
        if "owner" not in note:  # it is gone, or torn: nobody else's as long as it has not ended
            return _now_s() < self._until
        return bool(note["owner"] == self._claim.owner)

    def _check_free(self) -> None:
        """A lease that is there, even one that has ended, is not renewed as long as one looks.

        Raises:
            BusyError: Another driver holds it.
            OSError: The store does not answer, so that nobody knows.
        """
        note = _find_lease(self._folder, self._name)
        if note.get("until", 0) > time.time():
            raise _busy(self._folder, note)
        until = time.monotonic() + self._watch_s
        while note and time.monotonic() < until:
            time.sleep(min(self._watch_s, 1.0) / 4)
            if (now := _find_lease(self._folder, self._name)) != note:
                raise _busy(self._folder, now)

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
        told = {"owner": self._claim.owner, "until": time.time() + self._lease_s, "renewal": uuid.uuid4().hex}
        self._folder.write_json(self._name, {**_note(), **told})
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


def _find_lease(folder: Folder, name: str) -> dict[str, Any]:
    """A lease's note; {} where several looks find none. One that is torn is a note that has ended.

    Raises:
        OSError: The store does not answer.
    """
    for _ in range(_LOOKS):
        try:
            found = folder.read_json(name)
            return found if isinstance(found, dict) else {"torn": True}
        except ValueError:
            return {"torn": True}
        except FileNotFoundError:
            time.sleep(_LOOK_S)
    return {}


def _busy(folder: Folder, note: dict[str, Any]) -> BusyError:
    return BusyError(
        f"output.path {folder.path} is being worked on by {_who(note)}; wait for it to end, or end it (a lock that a "
        "killed driver left is taken over by itself)"
    )


def _who(note: dict[str, Any]) -> str:
    if "pid" not in note:
        return "another process"
    return f"process {note['pid']} on {note['host']}, since {note['since']}"
