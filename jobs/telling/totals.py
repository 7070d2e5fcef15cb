"""`gristmill report`: what an output holds, out of the marks of its increments and the reports of its runs.

Every increment carries the sums over its own rows, counted from its files before it was committed; so no row is read
again, and the sums are exact whatever was killed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.errors import OutputError
from jobs.input.files import name_some
from jobs.output.adopting import read_committed
from jobs.output.committed import Committed, Increment, add_up
from jobs.output.job_note import RUNS, find_job, open_output
from jobs.output.placing import find_strangers

_LEAST_WIDTH = 100


@dataclass(frozen=True)
class RunTotal:
    """What one run committed. `status` is `not ended` where there is no report: it was killed, or still works."""

    run_id: str
    command: str
    status: str
    increments: int
    rows: int
    succeeded: int
    failed: int
    input_tokens: int
    scoring_s: float
    wall_s: float | None

    @property
    def rows_per_s(self) -> float | None:
        return self.rows / self.scoring_s if self.scoring_s else None


@dataclass(frozen=True)
class Totals:
    """An output as a whole.

    Args:
        rows: Of the input.
        succeeded: With the retried ones.
        failed, failed_by_code: Those that no retry has mended.
        mended: Rows that failed and that a retry has mended; both rows are in the output.
        counts: Sums over all increments, retries among them, for what they cost.
        strangers: Files among the increments that are not committed, and that readers take for results.
        provider_usd: What a hosted model's provider was paid, by the prices that each run's settings had.
    """

    path: str
    rows: int
    succeeded: int
    failed: int
    failed_by_code: dict[str, int]
    mended: int
    counts: Committed
    scoring_s: float
    runs: tuple[RunTotal, ...]
    increments: tuple[Increment, ...]
    strangers: tuple[str, ...] = ()
    provider_usd: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_totals(path: str) -> Totals:
    """Sum up an output.

    Raises:
        OutputError: It is none.
    """
    folder = open_output(path)
    try:
        there = folder.sizes()  # before the marks: what a driver puts in its place has its mark by then
        marks = read_committed(folder, find_job(folder))
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error}); run again, a job may be starting afresh in it") from error
    increments = [mark.made for mark in marks]
    reports = folder.read_all_json([f"{RUNS}/{name}" for name in folder.entries(RUNS) if name.endswith(".json")])
    first = add_up(i.counts for i in increments if not i.is_retry)
    mended = add_up(Committed(failed_by_code=i.mended) for i in increments).failed_by_code
    codes = {code: n - mended.get(code, 0) for code, n in first.failed_by_code.items()}
    return Totals(
        path=path,
        rows=first.rows,
        succeeded=first.succeeded + sum(mended.values()),
        failed=first.failed - sum(mended.values()),
        failed_by_code={code: n for code, n in codes.items() if n},
        mended=sum(mended.values()),
        counts=add_up(i.counts for i in increments),
        scoring_s=round(sum(i.seconds for i in increments), 3),
        runs=tuple(_sum_runs(increments, reports)),
        increments=tuple(increments),
        strangers=tuple(find_strangers(there, marks)),
        provider_usd=round(sum(paid), 6) if (paid := _paid(reports)) else None,
    )


def show_totals(totals: Totals, console: Console) -> None:
    """Print an output's sums, and a line for each run."""
    sums = Table(show_header=False, box=None, pad_edge=False)
    sums.add_column(style="dim")
    sums.add_column(justify="right")
    for name, value in _lines(totals):
        sums.add_row(name, value)
    runs = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "command", "ended", "increments", "rows", "failed", "rows/s", "seconds"):
        runs.add_column(column, justify="left" if column in ("run", "command", "ended") else "right")
    for run in totals.runs:
        rate = "-" if run.rows_per_s is None else f"{run.rows_per_s:,.0f}"
        wall = "-" if run.wall_s is None else f"{run.wall_s:,.1f}"
        runs.add_row(
            run.run_id, run.command, run.status, f"{run.increments:,}", f"{run.rows:,}", f"{run.failed:,}", rate, wall
        )
    console.print(sums, "")
    console.width = max(console.width, _LEAST_WIDTH)  # a run's name is there to be copied
    console.print(runs)
    if totals.strangers:
        told = name_some([escape(path) for path in totals.strangers])
        console.print(f"[yellow]not committed, and yet among the results: {told}[/]", soft_wrap=True)


def _lines(totals: Totals) -> list[tuple[str, str]]:
    seconds = totals.scoring_s or float("inf")
    return [
        ("increments", f"{len(totals.increments):,}"),
        ("rows", f"{totals.rows:,}"),
        ("succeeded", f"{totals.succeeded:,}"),
        ("  of them by a retry", f"{totals.mended:,}"),
        ("failed", f"{totals.failed:,}"),
        *((f"  {code}", f"{count:,}") for code, count in totals.failed_by_code.items()),
        ("tokens in", f"{totals.counts.input_tokens:,}"),
        ("tokens out", f"{totals.counts.output_tokens:,}"),
        ("tokens of shared prefixes", f"{totals.counts.cached_tokens:,}"),
        ("engine loads", f"{len(totals.counts.engines):,}"),
        ("rows/s", f"{totals.counts.rows / seconds:,.0f}"),
        ("tokens/s", f"{totals.counts.input_tokens / seconds:,.0f}"),
        *([("cost by list prices", f"{totals.provider_usd:.4f} USD")] if totals.provider_usd is not None else []),
    ]


def _paid(reports: list[dict[str, Any]]) -> list[float]:
    return [usd for report in reports if (usd := report.get("provider_usd")) is not None]


def _sum_runs(increments: list[Increment], reports: list[dict[str, Any]]) -> list[RunTotal]:
    by_run: dict[str, list[Increment]] = {report["run_id"]: [] for report in reports}
    for increment in increments:
        by_run.setdefault(increment.run_id, []).append(increment)
    told = {report["run_id"]: report for report in reports}
    return [_sum_run(run_id, by_run[run_id], told.get(run_id)) for run_id in sorted(by_run)]


def _sum_run(run_id: str, own: list[Increment], report: dict[str, Any] | None) -> RunTotal:
    counts = add_up(increment.counts for increment in own)
    command = "retry" if own and own[0].is_retry else "score"
    return RunTotal(
        run_id=run_id,
        command=report["command"] if report else command,
        status=report["status"] if report else "not ended",
        increments=len(own),
        rows=counts.rows,
        succeeded=counts.succeeded,
        failed=counts.failed,
        input_tokens=counts.input_tokens,
        scoring_s=round(sum(increment.seconds for increment in own), 3),
        wall_s=report["wall_s"] if report else None,
    )
