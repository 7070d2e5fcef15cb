"""Engines take a device's memory one after the other, so that no two plan with the same free memory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from udfs.errors import EngineError
from udfs.wire.home import make_top, try_hold

_PLACE = Path("/tmp")  # and not TMPDIR, which executors of one machine may have each its own
_POLL_S = 0.2


@contextlib.contextmanager
def take_turn(device: str | None, *, wait_s: float) -> Iterator[None]:
    """Be the only engine of this user on this machine that loads onto a device, or plans with what is free there.

    The kernel lets go of a turn whose process ends. A wait is told; after `wait_s` it goes on without a turn, which is
    told too.

    Args:
        device: What all processes call it; None needs no turn.
        wait_s: Longest wait.
    """
    held = None if device is None else _wait(device, wait_s)
    try:
        yield
    finally:
        if held is not None:
            fcntl.flock(held, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
            os.close(held)


def _wait(device: str, wait_s: float) -> int | None:
    try:
        path = _lock_of(device)
        until, told = time.monotonic() + wait_s, False
        while (held := try_hold(path)) is None:
            if time.monotonic() > until:
                print(
                    f"gristmill: {_holder(path)} is not waited for any longer; memory is planned beside it",
                    file=sys.stderr,
                )
                return None
            if not told:
                print(f"gristmill: waits for {_holder(path)}, which takes memory of {device}", file=sys.stderr)
                told = True
            time.sleep(_POLL_S)
    except (OSError, EngineError) as error:
        print(f"gristmill: no turns are taken on {device}: {error}", file=sys.stderr)
        return None
    with contextlib.suppress(OSError):  # a full disk: nobody is told who it is
        os.truncate(held, 0)
        os.pwrite(held, str(os.getpid()).encode(), 0)
    return held


def _lock_of(device: str) -> Path:
    top = _PLACE / f"gristmill-{os.getuid()}"
    make_top(top)
    return top / f"{hashlib.sha256(device.encode()).hexdigest()[:16]}.device"


def _holder(path: Path) -> str:
    return f"process {path.read_text(encoding='utf-8', errors='replace') or 'of another engine'}"
