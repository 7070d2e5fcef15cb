"""Who watches over an engine from within: its executor, its clients, the micro-batches that run."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time

from udfs.engine.home import Home, is_running, try_hold
from udfs.engine.runner import Runner
from udfs.engine.server import Server
from udfs.executor import Executor

_IDLE_S = 300.0  # without a client
_RETIRE_S = 20.0  # without a client, where somebody wants the memory
_TICK_S = 0.5
_GRACE_S = 10.0  # for this watch itself to end a micro-batch that hangs, before C's timer does


class Keeper:
    """Ends the engine when it is not needed any more, or does not work any more.

    Args:
        home: Where it lives.
        executor: It ends with it.
        runner: Whose micro-batches may not hang.
        server: Whose clients need it.
        batch_timeout_s: From then on a micro-batch hangs.
    """

    def __init__(
        self, home: Home, executor: Executor, runner: Runner, server: Server, *, batch_timeout_s: float
    ) -> None:
        self._home, self._executor, self._runner, self._server = home, executor, runner, server
        self._batch_timeout_s = batch_timeout_s

    def keep(self) -> None:
        """Look after everything until the engine is not needed any more; does not return."""
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        while True:
            # If Python's lock is held by what hangs, this loop stands still, but the timer of C does not.
            faulthandler.dump_traceback_later(self._batch_timeout_s + _GRACE_S, exit=True)
            time.sleep(_TICK_S)
            if not is_running(self._executor):
                self._end()
            if self._runner.broke_s() > _RETIRE_S:  # its clients know by now; the next one gets a new engine
                self._end()
            if self._runner.slowest_s() > self._batch_timeout_s:
                print(f"a micro-batch hangs for {self._batch_timeout_s} s", file=sys.stderr, flush=True)
                faulthandler.dump_traceback()
                os._exit(71)
            if self._server.free_s() > (_RETIRE_S if self._server.asked_to_retire() else _IDLE_S):
                self._end_if_unused()

    def _end_if_unused(self) -> None:
        """End, but not while a worker is at the door: it holds the lock."""
        lock = try_hold(self._home / "lock")
        if lock is None:
            return
        if self._server.free_s() > 0:
            self._end()
        os.close(lock)

    def _end(self) -> None:
        self._home.remove()
        os._exit(0)  # lanes may be in the middle of something that nobody waits for
