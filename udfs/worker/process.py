"""Find an executor's engine, start it where there is none, replace it where it died."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pyarrow.flight as flight

from udfs.errors import EngineError, GristmillError, error_from_text
from udfs.executor import Executor, executor_of, python_path, visible_devices
from udfs.wire.faults import PROVEN, remember_fault
from udfs.wire.home import RETIRE_S, EngineId, Home, find_home, hold, is_there, make_request, sweep
from udfs.wire.journal import Fallen, read_journal

_BARREN_LIMIT = 5  # engines that die one after the other, and none has ever answered anything
_STREAK_LIMIT = 20  # engines that die one after the other without an answer, where there have been some before
_START_TRIES = 2  # for a process that ends without a word of its own
_START_S = 1860.0  # a start that takes longer stands still; by then the engine's own watch has ended it
_DYING_S = 10.0  # between a connection that breaks and the end of its process
_END_S = 5.0  # for an engine that is to end, to do so
_POLL_S = 0.05
_ASK_S = 0.2
_LOG_LINES = 3
_CRASHES = ("Fatal Python error", "Timeout (", "a micro-batch hangs", "the device is lost", "vLLM is broken")


@dataclass(frozen=True)
class Ready:
    """An engine that answers.

    Args:
        number: It is the so-manieth engine in its directory.
        pid: Its process.
        name: `host:pid:device/precision/batches`, batches packed or padded.
        parcel_tokens: Tokens of a parcel that suit it.
        socket: Where it listens.
        started: What tells its process from a later one with the same number.
    """

    number: int
    pid: int
    started: str
    name: str
    parcel_tokens: int
    socket: str


def reach_engine(engine: EngineId, *, dead: Ready | None = None) -> tuple[Home, Ready]:
    """The engine of this executor for such questions, started if need be.

    Args:
        engine: Which one.
        dead: An engine that the caller had, and that answers no more.

    Raises:
        ModelError: The model does not load.
        EngineError: The engine does not start, or dies again and again before it has answered anything.
    """
    if not is_there(engine.executor):
        raise EngineError(f"the executor, process {engine.executor.pid}, has ended")
    home = find_home(engine)
    try:
        return home, _find_or_start(home, engine, dead)
    except OSError as error:
        raise EngineError(
            f"the engine's directory {home.path} cannot be used: {error}; set TMPDIR to another"
        ) from error


def _find_or_start(home: Home, engine: EngineId, dead: Ready | None) -> Ready:
    failed_before = home.read("failed.json")
    with home.lock():
        request = home.read("request.json")
        if request and not is_there(Executor(**request["executor"])):
            home.clear()  # what a killed executor left, whose process had the same number
            request = None
        ready = _await_ready(home) if request and home.is_alive() else None
        if ready and (dead != ready or not _is_dying(home)):
            return ready
        if (failed := home.read("failed.json")) and failed != failed_before:  # while we waited for the lock
            raise _as_error(failed["error"])
        fallen = _bury(home, engine.executor)
        retire_idle(home, engine.gpu)
        sweep()
        number = (request["number"] if request else 0) + 1
        for _ in range(_START_TRIES):
            process = _spawn(home, make_request(engine, number=number, budget=fallen.budget // 2 if fallen else 0))
            if started := _await_ready(home, process):
                return started
            if home.read("failed.json"):
                break
        raise _why_not(home)


def read_fallen(home: Home, number: int) -> Fallen:
    """What the engine of this number was doing when it died."""
    told = home.read(f"fallen-{number}.json") or asdict(Fallen(0, 0, {}))
    suspects = {client: {int(n): places for n, places in found.items()} for client, found in told["suspects"].items()}
    return Fallen(told["answered"], told["budget"], suspects, told["alone"])


def retire_idle(home: Home, gpu: str | None) -> None:
    """Have the executor's other engines on this device end, those that nobody uses: one model has the memory.

    Waits for those on a GPU: what is free there decides for good how large a cache or a micro-batch the next one has.
    """
    others = [other for other in map(Home, home.path.parent.iterdir()) if other != home]
    ending = {other: process for other in others if (process := _ask_to_retire(other, gpu))}
    until = time.monotonic() + RETIRE_S + _END_S
    while time.monotonic() < until and any(
        is_there(process) and (not other.is_alive() or _ask_to_retire(other, gpu)) for other, process in ending.items()
    ):
        time.sleep(_ASK_S)


def ask_to_compare(engine: EngineId, run: str, *, budget_s: float) -> list[tuple[int, float]] | None:
    """Tokens and seconds of some of the items that an engine has run, one at a time; None where there is no engine.

    Args:
        engine: It is not started for this.
        run: Who asks; whoever asks again in its name gets nothing.
        budget_s: Seconds that it may take.
    """
    with contextlib.suppress(flight.FlightError, GristmillError, OSError, ValueError, psutil.Error):
        home = find_home(engine)
        if (told := home.read("ready.json")) and home.is_alive():
            asked = flight.Action("compare", json.dumps({"run": run, "budget_s": budget_s}).encode())
            with flight.connect(f"grpc+unix://{told['socket']}") as client:
                options = flight.FlightCallOptions(timeout=2 * budget_s + _DYING_S)
                (timed,) = client.do_action(asked, options=options)
            return [(tokens, seconds) for tokens, seconds in json.loads(timed.body.to_pybytes())]
    return None


def _ask_to_retire(home: Home, gpu: str | None) -> Executor | None:
    """The process of an engine on a GPU that is to end as nobody uses it; others are only asked."""
    with contextlib.suppress(flight.FlightError, OSError, ValueError, psutil.Error):
        here = (request := home.read("request.json")) and request.get("gpu") == gpu
        if here and (told := home.read("ready.json")) and home.is_alive():
            with flight.connect(f"grpc+unix://{told['socket']}") as client:
                (unused,) = client.do_action("retire", options=flight.FlightCallOptions(timeout=2))
            if ":cuda" in told["name"] and json.loads(unused.body.to_pybytes()):
                return executor_of(told["pid"])
    return None


def _spawn(home: Home, request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the engine's process, fresh and in a session of its own: it outlives the worker that starts it."""
    for name in ("ready.json", "failed.json", "alive", *(path.name for path in home.path.glob("socket-*"))):
        (home / name).unlink(missing_ok=True)
    home.write("request.json", request)
    alive = hold(home / "alive")
    try:
        with (home / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "udfs.engine", str(home.path), str(alive)],
                env=_environment(request["gpu"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[alive],
                start_new_session=True,
            )
    except OSError as error:
        raise EngineError(f"the engine's process cannot be started: {error}") from error
    finally:
        os.close(alive)


def _environment(gpu: str | None) -> dict[str, str]:
    """This process' environment, with our modules on the path and one GPU in sight."""
    # The model has been fetched by now; nothing else is.
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)  # Spark's, for a worker
    if gpu is not None:
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them, and with it Spark
            "CUDA_VISIBLE_DEVICES": visible_devices(gpu, os.environ.get("CUDA_VISIBLE_DEVICES")),
        }
    return environment


def _await_ready(home: Home, process: subprocess.Popen[bytes] | None = None) -> Ready | None:
    """Wait until the engine answers; None if its process ends before.

    Raises:
        EngineError: It does neither.
    """
    until = time.monotonic() + _START_S
    while True:
        if time.monotonic() > until:
            if process:
                process.kill()
            raise EngineError(f"the engine has not started within {_START_S:.0f} s")
        alive = home.is_alive()  # looked at first: an engine that ends writes first how it went
        if told := home.read("ready.json"):
            return Ready(**told) if alive else None
        if not alive:
            return None
        time.sleep(_POLL_S)


def _is_dying(home: Home) -> bool:
    """Wait a while for an engine to end whose connection broke."""
    until = time.monotonic() + _DYING_S
    while home.is_alive():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _bury(home: Home, executor: Executor) -> Fallen | None:
    """Keep what a dead engine was doing, for every client of it.

    Raises:
        EngineError: One after the other has died before it answered anything.
    """
    told = home.read("ready.json")
    if told is None or (home / f"fallen-{told['number']}.json").exists():
        return None
    fallen = read_journal(home.path)
    home.write(f"fallen-{told['number']}.json", asdict(fallen))
    last = _last_words(home)
    print(f"gristmill: engine {told['name']} died. {last}", file=sys.stderr)
    if fallen.alone:
        deaths = PROVEN if any(crash in last for crash in _CRASHES) else 1
        remember_fault(home, executor, fallen.alone, deaths=deaths)
    before = home.read("barren.json") or {"times": 0, "sound": False}
    sound = bool(before["sound"] or fallen.answered)
    times, limit = 0 if fallen.answered else before["times"] + 1, _STREAK_LIMIT if sound else _BARREN_LIMIT
    home.write("barren.json", {"times": min(times, limit - 1), "sound": sound})  # the next attempt has one more try
    if times >= limit:
        raise EngineError(f"the engine died {times} times in succession without an answer in between. {last}")
    return fallen


def _why_not(home: Home) -> GristmillError:
    """What kept an engine from starting: what it told, or that it died."""
    if (failed := home.read("failed.json")) is None:
        failed = {"error": f"[engine] the engine's process ended before it was ready. {_last_words(home)}"}
        home.write("failed.json", {**failed, "at": time.time()})
    return _as_error(failed["error"])


def _as_error(text: str) -> GristmillError:
    return error_from_text(text) or EngineError(text)


def _last_words(home: Home) -> str:
    lines = []
    with contextlib.suppress(OSError):
        lines = (home / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.strip() for line in lines if line.strip() and not line.startswith("gristmill:")]
    # A crash begins with what it was and goes on for pages; an exception ends with what it was.
    crash = next((i for i, line in enumerate(words) if line.startswith(_CRASHES)), None)
    said = " | ".join(words[-_LOG_LINES:] if crash is None else words[crash : crash + _LOG_LINES])
    return f"Its log says: {said}" if said else "It left no word; a process that is killed for memory leaves none"
