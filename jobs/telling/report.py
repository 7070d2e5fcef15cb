"""The report of a run: sums over what it committed, as a file and as a table for people."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from rich.table import Table

from jobs.hiding import hide
from jobs.hosted.money import make_cost
from jobs.hosted.provider import Usage
from jobs.increments.comparing import Comparison
from jobs.output.committed import Committed, Increment, add_up
from jobs.settings import Settings
from jobs.telling.savings import tell_compared

Command = Literal["score", "retry"]
Status = Literal["completed", "failed", "expired", "interrupted"]


@dataclass(frozen=True)
class RunReport:
    """What one run did. Counts are read back from committed files; `usd` is null without a price.

    Args:
        wall_s: From the command's start to the report.
        scoring_s: The part of it in which increments were read, scored and committed.
        numbers: The increments that it committed.
        input_files, input_bytes: What they were made of.
        left: What is left for the next run, by `files` and `bytes`, or of a table with a deadline by `rows`, and by
            `expired_rows`; what is not known is not there.
        ignored_files: Files that could not be read, as input.ignore_corrupt asks.
        gone_files: Files that were taken away after they had been planned and before they were scored.
        repeated_files: Files with the rows of another one that was read before, and which that is.
        malformed_files: Files with records that do not fit, and how many; they failed as `malformed`.
        warnings: Files that were not read, or not again, or that are too large, and why; settings of the model's own
            that are ignored.
        batches: `packed`, or `padded` where the model's architecture cannot be packed.
        too_many_failed: It ended since more rows failed than the settings allow; `failed` is what broke down too.
        usd: wall_s times the price of a machine times the number of those that scored.
        provider_usd: What a provider's tokens cost, by the list prices of the settings and its own count.
        live_usd: What the same would have cost without the discount of batches.
        saved_by_dedupe_usd: What identical requests would have cost that were sent once; by their estimated tokens.
        prices_of: The day of these prices.
        batches_run: Batches that a provider ran.
        deleted: Rows of a merged table that the input has no more, and which are gone.
        key: Columns by which rows can be named without telling what was read of them.
        compared: What some of the same texts took one at a time; null where it was not measured.
    """

    run_id: str
    command: Command
    started_at: str
    finished_at: str
    wall_s: float
    scoring_s: float
    status: Status
    rows: int
    succeeded: int
    failed: int
    failed_by_code: dict[str, int]
    increments: int
    numbers: list[int]
    input_files: int
    input_bytes: int
    input_tokens: int
    output_tokens: int
    padded_tokens: int
    cached_tokens: int
    scored_rows: int
    engines: dict[str, int]
    tokenizers: dict[str, int]
    device: str | None
    precision: str | None
    batches: str | None
    model: str
    revision: str | None
    left: dict[str, int] = field(default_factory=dict)
    ignored_files: list[str] = field(default_factory=list)
    gone_files: list[str] = field(default_factory=list)
    repeated_files: dict[str, str] = field(default_factory=dict)
    malformed_files: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    usd: float | None = None
    provider_usd: float | None = None
    live_usd: float | None = None
    saved_by_dedupe_usd: float | None = None
    prices_of: str | None = None
    batches_run: int = 0
    deleted: int = 0
    key: list[str] = field(default_factory=list)
    compared: Comparison | None = None
    error: str | None = None
    too_many_failed: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_report(
    settings: Settings,
    increments: list[Increment],
    *,
    run_id: str,
    started_at: datetime,
    status: Status,
    command: Command = "score",
    left: dict[str, int] | None = None,
    warnings: list[str] | None = None,
    compared: Comparison | None = None,
    error: str | None = None,
    too_many_failed: bool = False,
) -> RunReport:
    """Put a run's report together out of the increments that it committed."""
    committed = add_up(increment.counts for increment in increments)
    finished_at = datetime.now(UTC)
    wall_s = (finished_at - started_at).total_seconds()
    kinds = sorted({name.split(":", 2)[2] for name in committed.engines})
    hosts = {name.split(":", 1)[0] for name in committed.engines}
    price = settings.cost.usd_per_hour
    return RunReport(
        run_id=run_id,
        command=command,
        started_at=started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        wall_s=round(wall_s, 3),
        scoring_s=round(sum(increment.seconds for increment in increments), 3),
        status=status,
        **asdict(committed),
        increments=len(increments),
        numbers=[increment.number for increment in increments],
        input_files=sum(increment.input_files or 0 for increment in increments),
        input_bytes=sum(increment.input_bytes or 0 for increment in increments),
        left=left or {},
        ignored_files=[path for increment in increments for path in increment.ignored_files],
        gone_files=[path for increment in increments for path in increment.gone_files],
        repeated_files={path: before for i in increments for path, before in i.repeated_files.items()},
        malformed_files={path: rows for i in increments for path, rows in i.malformed_files.items()},
        warnings=[hide(warning, settings) for warning in warnings or []],
        device=_joined(kind.split("/")[0] for kind in kinds),
        precision=_joined(kind.split("/")[1] for kind in kinds),
        batches=_joined(kind.split("/")[2] for kind in kinds),
        model=", ".join(f"{name}={path}" for name, path in settings.models.items()) or settings.score.model,
        revision=settings.score.revision,
        versions=find_versions(),
        usd=None if price is None else round(price * wall_s / 3600 * max(1, len(hosts)), 4),
        **_cost(settings, increments, committed),
        batches_run=sum(increment.requests.get("batches", 0) for increment in increments),
        deleted=sum(increment.deleted for increment in increments),
        key=_untold(settings),
        compared=compared,
        error=error and hide(error, settings),
        too_many_failed=too_many_failed,
    )


def _untold(settings: Settings) -> list[str]:
    """Columns of the key that tell nothing of what was read; Spark tells no case apart."""
    read = {name.lower() for name in settings.text_columns()}
    return [name for name in settings.key() if name.lower() not in read]


def _cost(settings: Settings, increments: list[Increment], committed: Committed) -> dict[str, Any]:
    """What a provider's tokens cost, where the settings have its prices."""
    endpoint = settings.endpoint()
    if endpoint is None or endpoint.price is None:
        return {}
    usage = Usage(committed.input_tokens, committed.output_tokens, committed.cached_tokens)
    made, sent = (sum(i.requests.get(name, 0) for i in increments) for name in ("made_tokens", "sent_tokens"))
    cost = make_cost(usage, endpoint.price, in_batches=endpoint.in_batches, made_tokens=made, sent_tokens=sent)
    saved = cost.saved_by_dedupe_usd if endpoint.in_batches else None
    return {
        "provider_usd": cost.usd,
        "live_usd": cost.live_usd,
        "saved_by_dedupe_usd": saved,
        "prices_of": cost.as_of,
    }


def summary_table(report: RunReport) -> Table:
    """The report for people: what came out, what it took, how well the device was used."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in _summary(report):
        table.add_row(name, value)
    return table


def _summary(report: RunReport) -> list[tuple[str, str]]:
    if not report.increments:
        told = "0, there was nothing to score" if report.status == "completed" else "0"
        return [("rows", told), ("time", f"{report.wall_s:.1f} s")]
    seconds = max(report.scoring_s, 1e-9)
    lines = [
        ("increments", f"{report.increments:,}"),
        ("rows", f"{report.rows:,}"),
        ("succeeded", f"{report.succeeded:,}"),
        ("failed", f"{report.failed:,}"),
    ]
    lines += [(f"  {code}", f"{count:,}") for code, count in report.failed_by_code.items()]
    lines += [("deleted", f"{report.deleted:,}")] if report.deleted else []
    lines += [
        ("scored once for several rows", f"{max(0, report.succeeded - report.scored_rows):,}"),
        ("tokens", f"{report.input_tokens:,}"),
        *_written(report),
        ("padding", f"{1 - _computed(report) / report.padded_tokens:.1%}" if report.padded_tokens else "-"),
        ("rows/s", f"{report.rows / seconds:,.0f}"),
        ("tokens/s", f"{report.input_tokens / seconds:,.0f}"),
        ("engine loads", f"{len(report.engines)}"),
        *([("tokenizer", ", ".join(report.tokenizers))] if report.tokenizers else []),
        ("device", f"{report.device or '-'}, {report.precision or '-'}, {report.batches or '-'}"),
        ("time", f"{report.wall_s:.1f} s, {report.scoring_s:.1f} s of it scoring"),
    ]
    if report.usd is not None:
        lines.append(("cost", f"{report.usd:.4f} USD"))
    return [*lines, *_paid(report), *(tell_compared(asdict(report.compared)) if report.compared else [])]


def _paid(report: RunReport) -> list[tuple[str, str]]:
    """Of a provider's tokens."""
    if report.provider_usd is None:
        return []
    prices = f" of {report.prices_of}" if report.prices_of else ""
    lines = [(f"cost by list prices{prices}", f"{report.provider_usd:.4f} USD")]
    if report.live_usd is not None and report.saved_by_dedupe_usd is not None:
        lines.append(("  without the discount of batches", f"{report.live_usd:.4f} USD"))
        lines.append(("  and saved by asking the same once", f"{report.saved_by_dedupe_usd:.4f} USD"))
    return lines


def _written(report: RunReport) -> list[tuple[str, str]]:
    """Of a model that writes."""
    if not report.output_tokens:
        return []
    return [
        ("tokens written", f"{report.output_tokens:,}"),
        ("tokens written/s", f"{report.output_tokens / max(report.scoring_s, 1e-9):,.0f}"),
        ("tokens of shared prefixes", f"{report.cached_tokens:,}"),
    ]


def _computed(report: RunReport) -> int:
    """Tokens that went through the model and were no padding."""
    return report.input_tokens + report.output_tokens - report.cached_tokens


def _joined(values: Any) -> str | None:
    return ", ".join(sorted({str(v) for v in values})) or None


def find_versions() -> dict[str, str]:
    """Of Python and of the packages that decide answers."""
    found = {"python": platform.python_version()}
    for name in ("gristmill", "pyspark", "torch", "transformers", "tokenizers", "tokie", "fastokens", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # gristmill itself, from a tree or a zip
            continue
    return found
