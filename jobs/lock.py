"""One driver on an output at a time, and no lock that outlives its driver.

On a disk it is the kernel's lock, which ends with its process. Elsewhere it is a lease: a small file that its driver
renews; one that was not renewed for a while is free to take.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from jobs.errors import BusyError
from jobs.files import Folder

_LEASE_S = 90.0
_RENEW_S = 20.0
_SETTLE_S = 5.0  # two drivers that found the lease free at the same moment both wrote theirs by then


@contextlib.contextmanager
def hold_lock(folder: Folder, name: str) -> Iterator[None]:
    """Be the only driver while the body runs.

    Args:
        folder: The output directory.
        name: Path of the lock inside.

    Raises:
        BusyError: Another driver works there.
    """
    with _hold_file(folder, name) if folder.is_local else Lease(folder, name):
        yield


@contextlib.contextmanager
def _hold_file(folder: Folder, name: str) -> Iterator[None]:
    folder.make(name.rpartition("/")[0])
    lock = FileLock(folder.local_path(name))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy(folder, _read_note(folder, f"{name}.json")) from error
    try:
        folder.write_json(f"{name}.json", _note())
        yield
    finally:
        lock.release()


class Lease:
    """A lock as a file with a time by which its driver must have renewed it."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        *,
        lease_s: float = _LEASE_S,
        renew_s: float = _RENEW_S,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._folder, self._name = folder, name
        self._lease_s, self._renew_s, self._settle_s = lease_s, renew_s, settle_s
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name="gristmill-lease", daemon=True)

    def __enter__(self) -> None:
        note = _read_note(self._folder, self._name)
        if note.get("until", 0) > time.time():
            raise _busy(self._folder, note)
        self._renew()
        time.sleep(self._settle_s)
        note = _read_note(self._folder, self._name)
        if note.get("owner") != self._owner:
            raise _busy(self._folder, note)
        self._renewer.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join()
        if self.is_mine():
            self._folder.delete(self._name)

    def is_mine(self) -> bool:
        """No other driver has taken it, as it may once it was not renewed in time."""
        return _read_note(self._folder, self._name).get("owner") == self._owner

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s):
            with contextlib.suppress(OSError):  # a store that fails now may answer the next time
                if not self.is_mine():
                    return
                self._renew()

    def _renew(self) -> None:
        self._folder.write_json(self._name, {**_note(), "owner": self._owner, "until": time.time() + self._lease_s})


def _note() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "user": getpass.getuser(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read_note(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return folder.read_json(name)
    except (OSError, ValueError):
        return {}


def _busy(folder: Folder, note: dict[str, Any]) -> BusyError:
    who = f"process {note['pid']} on {note['host']}, since {note['since']}" if "pid" in note else "another process"
    return BusyError(
        f"output.path {folder.path} is being worked on by {who}; wait for it to end, or end it (a lock that a killed "
        "driver left is taken over by itself)"
    )
