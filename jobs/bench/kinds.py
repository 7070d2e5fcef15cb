"""Which benchmark a command asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.errors import UserError
from jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `gristmill bench` was told; its help says what each is."""

    rows: int
    rounds: int
    texts: str
    spark: bool = True
    engine: bool = False
    shape: str | None = None
    host: bool = False
    steps: bool = False
    structured: bool = False
    against: Path | None = None
    json_path: Path | None = None


def run_asked(settings: Settings, asked: Asked, console: Console) -> None:
    """Run the benchmark that is asked for, and print its figures.

    Raises:
        UserError: It does not go with the job.
    """
    if settings.is_hosted():
        raise UserError("bench measures this machine, and a provider runs the model of this job")
    if asked.steps:
        from jobs.bench.steps import run_steps_bench

        run_steps_bench(settings, rounds=asked.rounds, json_path=asked.json_path, console=console)
    elif asked.structured:
        from jobs.bench.structured import run_structured_bench

        run_structured_bench(settings, **_common(asked), console=console)
    elif asked.engine or asked.shape:
        from jobs.bench.engine import run_engine_bench

        run_engine_bench(settings, shape=asked.shape, **_common(asked), console=console)
    elif asked.host or (asked.against and not settings.spec().options.writes):
        from jobs.bench.host import run_host_bench

        run_host_bench(settings, against=asked.against, **_common(asked), console=console)
    elif settings.spec().options.writes:
        _run_writing(settings, asked, console)
    else:
        from jobs.bench.side_by_side import run_bench

        run_bench(settings, spark=asked.spark, **_common(asked), console=console)


def _run_writing(settings: Settings, asked: Asked, console: Console) -> None:
    if asked.against:
        from jobs.bench.versions import run_versions_bench

        run_versions_bench(settings, against=asked.against, **_common(asked), console=console)
    else:
        from jobs.bench.writing import run_writing_bench

        run_writing_bench(settings, **_common(asked), console=console)


def _common(asked: Asked) -> dict[str, Any]:
    return {"rows": asked.rows, "rounds": asked.rounds, "texts": asked.texts, "json_path": asked.json_path}
