"""Who watches over an engine from within: its executor, its clients, the micro-batches that run."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time

from udfs.engine.runner import Runner
from udfs.engine.server import Server
from udfs.engine.tally import StatusFile
from udfs.executor import Executor
from udfs.wire.faults import forget_faults
from udfs.wire.home import RETIRE_S, Home, is_there, try_hold

_START_S = 1800.0  # a large model from a slow disk
_IDLE_S = 300.0  # without a client
_TICK_S = 0.5
_LOCK_S = 5.0  # a worker that looks for this engine needs no longer
_GRACE_S = 10.0  # for this watch itself to end a micro-batch that hangs, before C's timer does


class Keeper:
    """Ends the engine when it is not needed any more, or does not work any more; from its first moment on.

    Args:
        home: Where it lives.
        alive: The descriptor that holds its `alive` file.
        executor: It ends with it.
    """

    def __init__(self, home: Home, alive: int, executor: Executor) -> None:
        self._home, self._alive, self._executor = home, alive, executor
        os.set_inheritable(alive, False)  # what the engine starts must not seem to be the engine when that has ended
        faulthandler.dump_traceback_later(_START_S, exit=True)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        threading.Thread(target=self._watch_executor, name="gristmill-keeper", daemon=True).start()

    def keep(self, runner: Runner, server: Server, status: StatusFile, *, batch_timeout_s: float) -> None:
        """Look after an engine that answers; does not return.

        Args:
            runner: Whose micro-batches may not hang.
            server: Whose clients need it.
            status: Is kept up to date.
            batch_timeout_s: From then on a micro-batch hangs.
        """
        status.write()
        while True:
            # If Python's lock is held by what hangs, this loop stands still, but the timer of C does not.
            faulthandler.dump_traceback_later(batch_timeout_s + _GRACE_S, exit=True)
            time.sleep(_TICK_S)
            with contextlib.suppress(OSError):
                os.utime(self._alive)
            if runner.broke_s() >= 0:
                self._end_broken(runner)
            if runner.slowest_s() > batch_timeout_s:
                print(f"a micro-batch hangs for {batch_timeout_s} s", file=sys.stderr, flush=True)
                faulthandler.dump_traceback()
                os._exit(71)
            status.write()
            if server.free_s() > (RETIRE_S if server.asked_to_retire() else _IDLE_S):
                self._end_if_unused(server)

    def _watch_executor(self) -> None:
        while is_there(self._executor):
            time.sleep(_TICK_S)
        self._end(for_good=True)

    def _end_broken(self, runner: Runner) -> None:
        """Be found by nobody any more, and end once the clients know."""
        if self._home.owns(self._alive):
            (self._home / "ready.json").unlink(missing_ok=True)
        if runner.broke_s() > RETIRE_S:
            self._end()

    def _end_if_unused(self, server: Server) -> None:
        """End, but not while a worker is at the door: it holds the lock."""
        if not self._home.owns(self._alive):
            os._exit(0)  # somebody has taken the directory away: nobody finds the way here
        lock = try_hold(self._home / "lock")
        if lock is None:
            return
        if server.free_s() > 0:
            self._home.remove()
            os._exit(0)
        os.close(lock)

    def _end(self, *, for_good: bool = False) -> None:
        """Take the directory along, if it is still ours and nobody is at work in it; `for_good`, what lies beside."""
        with contextlib.suppress(OSError):
            until = time.monotonic() + _LOCK_S
            while self._home.owns(self._alive) and time.monotonic() < until:
                if try_hold(self._home / "lock") is not None:
                    if for_good:
                        forget_faults(self._home)
                    self._home.remove()
                time.sleep(_TICK_S / 10)
        os._exit(0)  # lanes may be in the middle of something that nobody waits for
