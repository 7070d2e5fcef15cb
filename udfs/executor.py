"""Where this process runs: the Spark executor that it belongs to, and the cores that it may use."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from udfs.errors import EngineError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY = Path("/sys/fs/cgroup")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Executor:
    """The process that owns engines: they are shared by all that belongs to it, and end with it.

    Args:
        pid: Its process.
        started: What tells it from a later process with the same number, as `start_of` makes it.
        cores: What its engines may use.
    """

    pid: int
    started: str
    cores: int


def start_of(process: psutil.Process) -> str:
    """When a process began, told so that no step of the machine's clock changes it.

    On Linux the boot's id and the ticks from the boot to the start; elsewhere the time that the kernel has noted.

    Raises:
        psutil.Error: There is no such process.
    """
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = stat.rpartition(")")[2].split()[19]  # a name may hold spaces and brackets itself
        return f"{_boot()}:{ticks}"
    return str(process.create_time())


def _boot() -> str:
    """The boot's id; empty in a sandbox that does not tell."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return ""


def is_running(pid: int, started: str) -> bool:
    """A process is still there, and is not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return start_of(process) == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def find_executor() -> Executor | None:
    """The Java virtual machine that this Python worker belongs to; None outside of Spark."""
    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents():
            if parent.name().startswith("java"):
                return executor_of(parent.pid)
    return None


def executor_of(pid: int | None = None) -> Executor:
    """A process as the owner of engines; None takes this one."""
    process = psutil.Process(pid)
    told = 0
    with contextlib.suppress(psutil.Error, ValueError, IndexError):
        command = process.cmdline()  # every cluster manager starts an executor with `--cores N`
        told = int(command[command.index("--cores") + 1]) if process.name().startswith("java") else 0
    cores = usable_cores()
    return Executor(process.pid, start_of(process), min(told, cores) if told > 0 else cores)


def task_cores() -> int:
    """What Spark gives a task (`OMP_NUM_THREADS`, from `spark.task.cpus`), else every core that we may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else usable_cores()


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    with contextlib.suppress(OSError, ValueError):  # no control groups, or `max` for no quota
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def available_memory() -> int:
    """Bytes that this process can still have, of the machine and of its container's limit.

    What a container holds of files that have not been read lately is given up before anything else, and so is free.
    """
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # no control groups, or `max` for no limit
        limit, used = (int((_MEMORY / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_MEMORY / "memory.stat").read_text().splitlines())
        free = min(free, max(0, limit - used + int(stat["inactive_file"])))
    return free


def python_path() -> str:
    """PYTHONPATH of a process that is to have our modules, and what else this one imports from."""
    root = str(Path(__file__).parents[1])  # a directory, or the zip that Spark handed over
    path = dict.fromkeys(os.path.abspath(entry) for entry in (root, *sys.path) if entry)  # Spark's are relative
    return os.pathsep.join(path)


def visible_devices(gpu: str, seen: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is to be, so that a fresh process sees the GPU that Spark gave and no other.

    Args:
        gpu: Spark's address: the number or the name that its discovery script gave.
        seen: CUDA_VISIBLE_DEVICES as it is; None where it is not set. A script that asks nvidia-smi gives numbers of
            the machine, one that asks CUDA counts what is visible.

    Raises:
        EngineError: The GPU is not among the visible ones.
    """
    visible = [gpu] if seen is None else [name.strip() for name in seen.split(",") if name.strip()]
    if gpu in visible:
        return gpu
    places = [str(place) for place in range(len(visible))]
    if gpu in places and not set(places) & set(visible):  # else "1" of "1,2" would be both of them
        return visible[int(gpu)]
    raise EngineError(
        f"Spark gave this task GPU {gpu}, but CUDA_VISIBLE_DEVICES is {seen!r}; have the discovery script print the "
        "numbers that stand there, or leave CUDA_VISIBLE_DEVICES alone"
    )
