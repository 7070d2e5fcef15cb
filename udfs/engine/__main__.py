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

from udfs.engine.budget import measure_budget
from udfs.engine.home import Home
from udfs.engine.journal import Journal
from udfs.engine.keeper import Keeper
from udfs.engine.model import Model
from udfs.engine.runner import Runner, plan_lanes
from udfs.engine.scheduler import ROUND_BATCHES, Scheduler
from udfs.engine.server import Server
from udfs.errors import EngineError, GristmillError
from udfs.executor import Executor
from udfs.spec import ScoreSpec


def main() -> None:
    """Load, serve, end."""
    home = Home(Path(sys.argv[1]))
    faulthandler.enable()  # a segfault leaves its stack in the log
    request = home.read("request.json") or {}
    keeper = Keeper(home, int(sys.argv[2]), Executor(**request["executor"]))
    try:
        runner, server = _start(home, request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker that waits is told
        traceback.print_exc()
        told = error if isinstance(error, GristmillError) else EngineError(f"{type(error).__name__}: {error}")
        home.write("failed.json", {"error": " ".join(str(told).split()), "at": time.time()})
        sys.exit(1)
    keeper.keep(runner, server, batch_timeout_s=request["spec"]["batch_timeout_s"])


def _start(home: Home, request: dict[str, Any]) -> tuple[Runner, Server]:
    """Load the model, measure its budget, open the door."""
    spec = ScoreSpec(**{**request["spec"], "labels": tuple(request["spec"]["labels"])})
    executor = Executor(**request["executor"])
    model = Model(spec, gpu=request["gpu"])
    lanes, threads = plan_lanes(on_cuda=model.on_cuda, cores=executor.cores)
    budget = measure_budget(model, lanes=lanes, threads=threads, fixed=spec.max_batch_tokens)
    if request["budget"]:
        budget.start_at(request["budget"])
    scheduler = Scheduler(budget, pad_multiple=model.pad_multiple, lanes=lanes, per_token=model.per_token)
    runner = Runner(model, scheduler, budget, lanes=lanes, threads=threads, journal=Journal(home.path, lanes))
    socket = str(home / f"socket-{request['number']}")
    server = Server(socket, scheduler, width=model.width)
    home.write(
        "ready.json",
        {
            "number": request["number"],
            "pid": os.getpid(),
            "name": model.name,
            "parcel_tokens": ROUND_BATCHES // 2 * budget.max_batch_tokens,
            "socket": socket,
        },
    )
    print(f"gristmill: {model.name} is ready, {lanes} lanes, {budget}", file=sys.stderr)
    return runner, server


if __name__ == "__main__":
    main()
