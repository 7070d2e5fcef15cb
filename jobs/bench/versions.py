"""A job that writes by this checkout of gristmill and by another one, in turn: seconds, CPU seconds, tokens, answers.

Each has a process of its own, with the model loaded, and the same texts of the job; they take turns at writing.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.bench.writing import take_prompts
from jobs.errors import JobError, UserError
from jobs.settings import Settings

_HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class VersionFigures:
    """What one checkout wrote; medians over the rounds.

    Args:
        checkout: Whose code.
        seconds, cpu_s: Of a round, by the clock and by the processor.
        written: Tokens.
        alike: Share of its answers that are those of the first checkout, token by token.
        ratio, cpu_ratio: Its tokens a second, and a CPU second, over those of the last checkout, round by round.
    """

    checkout: str
    seconds: float
    cpu_s: float
    written: int
    alike: float
    ratio: float
    cpu_ratio: float


@dataclass(frozen=True)
class _Round:
    seconds: float
    cpu_s: float
    answers: list[list[int]]

    @property
    def written(self) -> int:
        return sum(map(len, self.answers))


def run_versions_bench(
    settings: Settings,
    *,
    rows: int,
    rounds: int,
    texts: str,
    against: Path,
    json_path: Path | None,
    console: Console,
) -> list[VersionFigures]:
    """Have both write the same, in turn, and print how they compare.

    Args:
        settings: The job; its answers may be drawn, or held to a schema.
        rows: How many texts.
        rounds: How often each writes them, after some that are not counted.
        texts: `input`, the job's own; `docstrings` or `short`, of the installed packages, for every column.
        against: The other checkout.
        json_path: Where to write the figures too.

    Raises:
        UserError: No such checkout.
        JobError: One does not write; the message has its last words.
    """
    if not (against / "udfs" / "local.py").is_file():
        raise UserError(f"--against {against}: no checkout of gristmill, it has no udfs/local.py")
    checkouts = [_HERE.parents[2], against.resolve()]
    found: list[list[_Round]] = [[] for _ in checkouts]
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder, ExitStack() as stack:
        told = Path(folder) / "told"
        told.write_bytes(pickle.dumps((settings.spec(), take_prompts(settings, texts, rows))))
        writers = [stack.enter_context(_writing(checkout, told)) for checkout in checkouts]
        for checkout, writer in zip(checkouts, writers, strict=True):  # none loads while another is measured
            _wait_for(writer, checkout, "ready")
        for number in range(1, rounds + 1):
            for checkout, writer, of in zip(checkouts, writers, found, strict=True):
                with console.status(f"round {number} of {rounds}: {checkout}"):
                    of.append(_ask(writer, checkout))
                console.print(
                    f"round {number}, {checkout}: {of[-1].seconds:.1f} s, {of[-1].cpu_s:.1f} CPU s, "
                    f"{of[-1].written:,} tokens",
                    style="dim",
                )
    figures = [_make_figures(str(checkout), of, found) for checkout, of in zip(checkouts, found, strict=True)]
    console.print(_make_table(figures))
    if json_path:
        json_path.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    return figures


@contextmanager
def _writing(checkout: Path, told: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with the code of a checkout, but for this file, which runs in it."""
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-P", str(_HERE.with_name("version.py")), str(told)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen[str], checkout: Path) -> _Round:
    if process.stdin is None:
        raise JobError("a process without pipes")
    print("write", file=process.stdin, flush=True)
    return _Round(**_wait_for(process, checkout, "seconds"))


def _wait_for(process: subprocess.Popen[str], checkout: Path, key: str) -> dict[str, Any]:
    """Its next line that begins with a key; what others print there is passed over."""
    for line in process.stdout or ():
        if line.startswith(f'{{"{key}"'):
            told: dict[str, Any] = json.loads(line)
            return told
    raise JobError(f"the engine of {checkout} ended with exit {process.wait()}; what it said is above")


def _make_figures(checkout: str, rounds: list[_Round], found: list[list[_Round]]) -> VersionFigures:
    first, last = found[0], found[-1]
    middle, alike = statistics.median, zip(rounds[0].answers, first[0].answers, strict=True)
    return VersionFigures(
        checkout=checkout,
        seconds=middle(r.seconds for r in rounds),
        cpu_s=middle(r.cpu_s for r in rounds),
        written=rounds[0].written,
        alike=statistics.mean(a == b for a, b in alike),
        ratio=middle((r.written / r.seconds) / (o.written / o.seconds) for r, o in zip(rounds, last, strict=True)),
        cpu_ratio=middle((r.written / r.cpu_s) / (o.written / o.cpu_s) for r, o in zip(rounds, last, strict=True)),
    )


def _make_table(figures: list[VersionFigures]) -> Table:
    table = Table("checkout", box=None, pad_edge=False)
    for name in ("seconds", "CPU s", "tokens", "tokens/s", "answers alike", "tokens/s, times", "a CPU s, times"):
        table.add_column(name, justify="right")
    for f in figures:
        rate: Any = f"{f.written / f.seconds:,.0f}"
        ratios = f"{f.ratio:.2f}", f"{f.cpu_ratio:.2f}"
        table.add_row(
            f.checkout, f"{f.seconds:.1f}", f"{f.cpu_s:.1f}", f"{f.written:,}", rate, f"{f.alike:.0%}", *ratios
        )
    return table
