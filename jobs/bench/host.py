"""What the host costs: the whole Spark job, real texts and real columns, with a model that does nothing.

The model is a BERT without layers: it looks its vectors up and averages them. What is left is what Spark, the workers
and the engine's own code take; the start is subtracted by a second, small run. Each run is a command of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from jobs.bench.corpus import docstrings
from jobs.bench.processes import Kind, Ran, run_counted
from jobs.bench.shapes import make_shape
from jobs.errors import JobError, UserError
from jobs.settings import Settings
from udfs.model.files import open_model_of

_DISTINCT = 20_000  # texts; where more rows are asked for, they come again with a number before them
_FILE_ROWS = 2_500
_SMALL_PART = 50  # the small run has this part of the rows
_SCORE = ("max_tokens", "overflow", "chunk_overlap", "precision")
_KINDS: tuple[Kind, ...] = ("jvm", "workers", "engine", "driver")
_MILLION = 1e6


@dataclass(frozen=True)
class HostFigures:
    """What one checkout takes; medians over the rounds, the start subtracted.

    Args:
        checkout: Whose code.
        cpu_s: CPU seconds a million tokens, by kind of process.
        host_cpu_s: Of the JVM and the workers together.
        start_s, start_cpu_s: Of the small run.
        ratio: Its `host_cpu_s` over that of the first checkout, round by round.
        rate_ratio: The first checkout's seconds over its own, likewise.
    """

    checkout: str
    rows: int
    tokens: int
    rows_per_s: float
    tokens_per_s: float
    cpu_s: dict[Kind, float]
    host_cpu_s: float
    start_s: float
    start_cpu_s: dict[Kind, float]
    ratio: float = 1.0
    rate_ratio: float = 1.0


def run_host_bench(
    settings: Settings,
    *,
    rows: int,
    rounds: int,
    texts: str,
    against: Path | None,
    json_path: Path | None,
    console: Console,
) -> list[HostFigures]:
    """Measure the host and print the figures.

    Args:
        settings: The job: its model's tokenizer, `score.max_tokens` and the like, `batching` and `spark`. Its input is
            not read, and whatever its task is, 384 floats a row are written.
        rows: How many texts; 100,000 are some minutes.
        rounds: How often each run is repeated.
        texts: `docstrings` (also for `input`) or `short`, from the installed packages.
        against: Another checkout of gristmill, which is measured in turn with this one; this one again tells the noise.
        json_path: Where to write the figures too.

    Raises:
        UserError: No such texts or checkout.
        JobError: A run failed; the message has its last words.
    """
    if texts not in ("input", "docstrings", "short"):
        raise UserError(f"--texts {texts}: choose one of docstrings, short")
    if against and not (against / "jobs" / "cli.py").is_file():
        raise UserError(f"--against {against}: no checkout of gristmill, it has no jobs/cli.py")
    checkouts = [Path(__file__).resolve().parents[2], *([against.resolve()] if against else [])]
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder:
        top = Path(folder)
        _write_rows(_take_texts(rows, short=texts == "short"), top)
        (top / "model").mkdir()
        make_shape("no-layers", open_model_of(settings.spec()), top / "model")
        measured: list[list[_Round]] = [[] for _ in checkouts]
        for number in range(1, rounds + 1):
            for checkout, found in zip(checkouts, measured, strict=True):
                with console.status(f"round {number} of {rounds}: {checkout}"):
                    small, large = (_run(settings, top, name, checkout) for name in ("small", "large"))
                found.append(_Round(small, large))
    figures = [_make_figures(*of, measured[0]) for of in zip(checkouts, measured, strict=True)]
    console.print(_make_table(figures))
    if json_path:
        json_path.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    return figures


@dataclass(frozen=True)
class _Run:
    """One run of the command: what it took, and what it committed."""

    took: Ran
    rows: int
    tokens: int


@dataclass(frozen=True)
class _Round:
    """A small and a large run, and what lies between them."""

    small: _Run
    large: _Run

    @property
    def rows(self) -> int:
        return self.large.rows - self.small.rows

    @property
    def tokens(self) -> int:
        return self.large.tokens - self.small.tokens

    @property
    def seconds(self) -> float:
        return self.large.took.seconds - self.small.took.seconds

    def cpu_s(self, *kinds: Kind) -> float:
        """CPU seconds a million tokens."""
        spent = sum(self.large.took.cpu.get(kind, 0.0) - self.small.took.cpu.get(kind, 0.0) for kind in kinds)
        return spent / self.tokens * _MILLION

    @property
    def host(self) -> float:
        return self.cpu_s("jvm", "workers")


def _take_texts(rows: int, *, short: bool) -> list[str]:
    distinct = docstrings(min(rows, _DISTINCT), first_line=short)
    return [f"{number // len(distinct)} {distinct[number % len(distinct)]}" for number in range(rows)]


def _write_rows(texts: list[str], top: Path) -> None:
    small = max(1, len(texts) // _SMALL_PART)
    for name, taken in (("small", texts[:small]), ("large", texts)):
        (top / name).mkdir()
        for start in range(0, len(taken), _FILE_ROWS):
            part = taken[start : start + _FILE_ROWS]
            table = pa.table({"id": range(start, start + len(part)), "text": part})
            pq.write_table(table, top / name / f"{start:09d}.parquet")


def _run(settings: Settings, top: Path, name: str, checkout: Path) -> _Run:
    """Score the rows of a name once, from nothing."""
    conf, log = top / "job.yaml", top / "log"
    out = top / f"out-{hashlib.sha256(str(checkout).encode()).hexdigest()[:8]}"  # none reads what another has written
    conf.write_text(yaml.safe_dump(_make_job(settings, top, name, out)))
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(conf), "--overwrite"]
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    took = run_counted(command, env={"PYTHONPATH": os.pathsep.join(paths)}, cwd=top, log=log)
    if took.rc:
        raise JobError(f"the job by {checkout} ended with exit {took.rc}: {log.read_text(errors='replace')[-2000:]}")
    report = json.loads(max((out / "_gristmill" / "runs").glob("*.json")).read_text())
    return _Run(took, report["rows"], report["input_tokens"])


def _make_job(settings: Settings, top: Path, name: str, out: Path) -> dict[str, Any]:
    asked = {key: value for key in _SCORE if (value := getattr(settings.score, key)) is not None}
    return {
        "input": {"path": str(top / name), "key": ["id"]},
        "output": {"path": str(out), "columns": ["id"]},
        "score": {"task": "feature-extraction", "model": str(top / "model"), "text": "text", **asked},
        "batching": settings.batching.model_dump(mode="json"),
        "spark": settings.spark.model_dump(mode="json"),
    }


def _make_figures(checkout: Path, rounds: list[_Round], first: list[_Round]) -> HostFigures:
    middle = statistics.median
    return HostFigures(
        checkout=str(checkout),
        rows=rounds[0].large.rows,
        tokens=rounds[0].large.tokens,
        rows_per_s=middle(r.rows / r.seconds for r in rounds),
        tokens_per_s=middle(r.tokens / r.seconds for r in rounds),
        cpu_s={kind: middle(r.cpu_s(kind) for r in rounds) for kind in _KINDS},
        host_cpu_s=middle(r.host for r in rounds),
        start_s=middle(r.small.took.seconds for r in rounds),
        start_cpu_s={kind: middle(r.small.took.cpu.get(kind, 0.0) for r in rounds) for kind in _KINDS},
        ratio=middle(r.host / f.host for r, f in zip(rounds, first, strict=True)),
        rate_ratio=middle(f.seconds / r.seconds for r, f in zip(rounds, first, strict=True)),
    )


def _make_table(figures: list[HostFigures]) -> Table:
    table = Table(show_header=len(figures) > 1, box=None, pad_edge=False)
    table.add_column("", style="dim")
    for f in figures:
        table.add_column(f.checkout, justify="right", overflow="fold")
    table.add_row("texts", *(f"{f.rows:,}, {f.tokens / f.rows:.0f} tokens on average" for f in figures))
    table.add_row("rows/s", *(f"{f.rows_per_s:,.0f}" for f in figures))
    table.add_row("tokens/s", *(f"{f.tokens_per_s:,.0f}" for f in figures))
    for kind in _KINDS:
        table.add_row(f"CPU s a million tokens, {kind}", *(f"{f.cpu_s[kind]:.2f}" for f in figures))
    table.add_row("CPU s a million tokens, jvm and workers", *(f"{f.host_cpu_s:.2f}" for f in figures))
    table.add_row("small run, seconds", *(f"{f.start_s:.1f}" for f in figures))
    spent = ["/".join(f"{f.start_cpu_s[kind]:.1f}" for kind in _KINDS) for f in figures]
    table.add_row(f"small run, CPU s of {'/'.join(_KINDS)}", *spent)
    if len(figures) > 1:
        table.add_row("jvm and workers, times the first", *(f"{f.ratio:.2f}" for f in figures))
        table.add_row("rate, times the first", *(f"{f.rate_ratio:.2f}" for f in figures))
    return table
