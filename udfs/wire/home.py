"""The directory where an executor's workers and one engine of theirs meet.

TMP/gristmill-UID/<executor>/<engine>/   mode 0700
    lock            held by whoever looks for, starts or replaces the engine, and by an engine that ends
    alive           held by the engine, from before its first line to its end; the kernel lets go of it. It is
                    touched as long as the engine's watch goes round
    request.json    what the engine is started with
    ready.json      or failed.json: how its start ended
    socket-N        of the N-th engine that was started here
    lane-*          the journal
    status.json     what the engine has done, and what waits; written while its watch goes round
    fallen-N.json   what the N-th engine was doing when it died
    log             the engine's standard output and error
TMP/gristmill-UID/<executor>/<engine>.faults   the items that killed engines
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from udfs.errors import EngineError
from udfs.executor import Executor, is_running
from udfs.model.files import open_model_of
from udfs.spec import ScoreSpec

RETIRE_S = 20.0  # without a client, an engine ends where somebody wants its memory
_SOCKET_PATH = 100  # bytes that the kernel allows, less a few
_FORSAKEN_S = 3600.0


@dataclass(frozen=True)
class EngineId:
    """Which engine: there is one for each.

    Args:
        spec: What is asked of which model.
        gpu: Address of the GPU that Spark gave; None takes the first one, or the CPU.
        executor: Who owns it.
    """

    spec: ScoreSpec
    gpu: str | None
    executor: Executor


@dataclass(frozen=True)
class Home:
    """One engine's directory; see above for what lies in it."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file; None if there is none."""
        try:
            return json.loads((self / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file so that a reader sees all of it or nothing."""
        partial = self / f"{name}.{os.getpid()}"
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(self / name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who looks for, starts or replaces the engine. Makes the directory if it went away."""
        while (held := self._lock()) is None:
            pass  # an engine that ended took the directory along while we waited
        try:
            yield
        finally:
            os.close(held)

    def _lock(self) -> int | None:
        make_private(self.path)
        with contextlib.suppress(FileNotFoundError):
            held = hold(self / "lock")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), (self / "lock").stat()):
                    return held
            os.close(held)
        return None

    def is_alive(self) -> bool:
        """Some process holds `alive`: the engine lives, or is being started."""
        try:
            held = try_hold(self / "alive")
        except FileNotFoundError:
            return False
        if held is None:
            return True
        os.close(held)
        return False

    def clear(self) -> None:
        """Take everything away but the lock, which the caller holds."""
        for path in self.path.iterdir():
            if path.name != "lock":
                path.unlink()

    def remove(self) -> None:
        """Take the directory away, and its executor's if it was the last one; the caller holds the lock.

        All of it goes at once, under another name: a worker that comes meanwhile makes a new one.
        """
        gone = self.path.with_name(f"{self.path.name}.gone-{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def owns(self, alive: int) -> bool:
        """Whether this descriptor is of the `alive` that lies here now, and not of one that went away."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(alive), (self / "alive").stat())
        return False


def find_home(engine: EngineId) -> Home:
    """The directory of an engine; it need not be there."""
    spec = engine.spec
    files = open_model_of(spec)
    unread = spec.options.unread_by_engine(files)
    told = {name: value for name, value in spec.for_engine().items() if name not in unread}
    asked = json.dumps([told, files.stamp(), engine.gpu, engine.executor.cores], sort_keys=True)
    owner = f"{platform.node()} {_pid_namespace()} {engine.executor.pid}"
    return Home(top() / _digest(owner) / _digest(asked))


def hold(path: Path) -> int:
    """Lock a file, once nobody else holds it; returns its descriptor, which holds the lock until it is closed."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def try_hold(path: Path) -> int | None:
    """As `hold`, but None if somebody holds it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sweep(below: Path | None = None) -> None:
    """Remove what killed executors left behind, whose engines are gone too."""
    for path in (below or top()).glob("*/*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another version may write otherwise
            if path.is_dir():
                _sweep_home(Home(path))
            elif (told := Home(path.parent).read(path.name)) and not is_there(Executor(**told["executor"])):
                path.unlink()
                path.parent.rmdir()


def find_near() -> list[Home]:
    """The engines' homes of executors that started this process, or that it has started: Spark's on this machine."""
    found: list[Home] = []
    own = psutil.Process()
    family = {own.pid}
    with contextlib.suppress(psutil.Error):  # a sandbox that does not tell
        family |= {process.pid for process in own.parents()}
    for path in top().glob("*/*/request.json"):
        home = Home(path.parent)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):  # it ends, or is another's
            executor = Executor(**(home.read(path.name) or {})["executor"])
            above = {process.pid for process in psutil.Process(executor.pid).parents()}
            if is_there(executor) and (executor.pid in family or own.pid in above):
                found.append(home)
    return found


def _sweep_home(home: Home) -> None:
    held = try_hold(home / "lock")
    if held is None:
        return
    try:
        if _is_forsaken(home) and not home.is_alive():
            home.remove()
    finally:
        os.close(held)


def _is_forsaken(home: Home) -> bool:
    request = home.read("request.json")
    if request is None:  # its worker was killed before it could start an engine
        return time.time() - (home / "lock").stat().st_mtime > _FORSAKEN_S
    here = request.get("namespace") in (None, _pid_namespace())  # else we cannot see its processes
    return here and not is_there(Executor(**request["executor"]))


def is_there(executor: Executor) -> bool:
    """The executor's process is still there, and is not a later one with its number."""
    return is_running(executor.pid, executor.started)


def make_request(engine: EngineId, *, number: int, budget: int) -> dict[str, Any]:
    """What an engine is started with, as JSON."""
    asked = {"spec": engine.spec.for_engine(), "gpu": engine.gpu, "executor": asdict(engine.executor)}
    return {**asked, "namespace": _pid_namespace(), "number": number, "budget": budget}


def make_private(path: Path) -> None:
    """Make a directory below our own in TMP that only this user can enter.

    Raises:
        EngineError: Ours in TMP belongs to somebody else, or is open to others.
    """
    make_top(top())
    with contextlib.suppress(FileNotFoundError):  # an engine takes the executor's directory along as it ends
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)


def make_top(top: Path) -> None:
    """Make our own directory among those of others.

    Raises:
        EngineError: It belongs to somebody else, or is open to others.
    """
    top.mkdir(mode=0o700, exist_ok=True)
    found = top.lstat()
    if not top.is_dir() or top.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EngineError(f"{top} must be a directory that only user {os.getuid()} can enter; remove it")


def top() -> Path:
    """Our own directory in TMP; it need not be there."""
    name = f"gristmill-{os.getuid()}"
    longest = len(name) + 2 * 17 + len("/socket-99999")
    place = os.environ.get("TMPDIR") or "/tmp"  # the same for every worker, even when it is full
    return Path(place if len(os.fsencode(place)) + longest < _SOCKET_PATH else "/tmp", name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pid_namespace() -> str:
    """Tells containers apart that share a directory for temporary files."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
