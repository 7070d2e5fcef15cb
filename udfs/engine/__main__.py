"""The engine's process: load the model, answer, and end when nobody is left to answer.

    python -m udfs.engine HOME ALIVE

HOME is the directory where `request.json` lies, ALIVE the descriptor that holds the lock of its `alive` file.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from udfs.engine.assembly import assemble
from udfs.engine.comparing import Comparer
from udfs.engine.keeper import Keeper
from udfs.engine.runner import Runner
from udfs.engine.server import Server
from udfs.engine.tally import StatusFile
from udfs.errors import EngineError, GristmillError
from udfs.executor import Executor, start_of
from udfs.tasks.registry import read_spec
from udfs.wire.home import Home
from udfs.wire.journal import Journal


def main() -> None:
    """Load, serve, end."""
    home = Home(Path(sys.argv[1]))
    faulthandler.enable()  # a segfault leaves its stack in the log
    request = home.read("request.json") or {}
    keeper = Keeper(home, int(sys.argv[2]), Executor(**request["executor"]))
    try:
        runner, server, status = _start(home, request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker that waits is told
        traceback.print_exc()
        told = error if isinstance(error, GristmillError) else EngineError(f"{type(error).__name__}: {error}")
        home.write("failed.json", {"error": " ".join(str(told).split()), "at": time.time()})
        sys.exit(1)
    keeper.keep(runner, server, status, batch_timeout_s=request["spec"]["batch_timeout_s"])


def _start(home: Home, request: dict[str, Any]) -> tuple[Runner, Server, StatusFile]:
    """Load the model, measure its budget, open the door."""
    engine = assemble(
        read_spec(request["spec"]),
        cores=Executor(**request["executor"]).cores,
        gpu=request["gpu"],
        start_at=request["budget"],
        make_journal=lambda lanes: Journal(home.path, lanes),
    )
    socket = str(home / f"socket-{request['number']}")
    comparer = Comparer(engine.scheduler, lanes=1 if ":cuda" in engine.name else engine.lanes)
    server = Server(socket, engine.scheduler, width=engine.model.width, comparer=comparer)
    home.write(
        "ready.json",
        {
            "number": request["number"],
            "pid": os.getpid(),
            "started": start_of(psutil.Process()),
            "name": engine.name,
            "parcel_tokens": engine.parcel_tokens,
            "socket": socket,
        },
    )
    print(f"gristmill: {engine.name} is ready, {engine.lanes} lanes, {engine.budget}", file=sys.stderr)
    about = {"name": engine.name, "number": request["number"]}
    return engine.runner, server, StatusFile(home, about, engine.scheduler.look)


if __name__ == "__main__":
    main()
