"""`gristmill report OUT --html FILE`: what an output holds, as one page that needs nothing else.

All figures are of what was committed: marks, reports of runs, and the rows' own usage. No text is on it, and of failed
rows no more than their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.errors import OutputError
from jobs.folder import Folder
from jobs.increments.sizing import bytes_per_s, rows_per_s, tell_duration
from jobs.output.adopting import read_kept
from jobs.output.committed import Increment
from jobs.output.job_note import RUNS, find_job, open_output
from jobs.output.marks import Mark
from jobs.telling import figures
from jobs.telling.figures import Drawn, tell_rate
from jobs.telling.rows import Lengths, Names, find_failed, read_lengths
from jobs.telling.savings import tell_savings, tell_usd
from jobs.telling.totals import Totals, read_totals

_MILLION = 1_000_000
_ENGINES = 50  # rows of the table
Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """What a page is made of.

    Args:
        totals: Sums over the output.
        job: What its job file says of the job.
        reports: Of its runs, in order.
        lengths: Of its rows.
        failed: Keys of some failed rows by code.
        unread: Why rows were not looked at.
    """

    totals: Totals
    job: dict[str, Any]
    reports: list[dict[str, Any]]
    lengths: Lengths
    failed: dict[str, list[str]]
    unread: str | None = None

    @property
    def first(self) -> list[Increment]:
        """Increments that are no retries."""
        return [i for i in self.totals.increments if not i.is_retry]

    @property
    def last(self) -> dict[str, Any]:
        """The report of the last run; empty where none has ended."""
        return self.reports[-1] if self.reports else {}

    @property
    def worked(self) -> dict[str, Any]:
        """The report of the last run that had something to score."""
        return next((r for r in reversed(self.reports) if r.get("rows") and r.get("command") != "retry"), self.last)

    @property
    def compared(self) -> dict[str, Any]:
        """The report of the last run that measured what texts take one at a time."""
        return next((r for r in reversed(self.reports) if r.get("compared")), self.last)

    @property
    def key(self) -> list[str]:
        """Columns by which failed rows are named."""
        return next((r["key"] for r in reversed(self.reports) if r.get("key")), [])


def write_page(path: str, target: str) -> None:
    """Write the page of an output.

    Args:
        path: The output directory.
        target: An HTML file, on this machine or wherever pyarrow reaches.

    Raises:
        OutputError: It is no output, or the page cannot be written.
        UserError: matplotlib is not there.
    """
    made = make_page(find(path))
    parent, _, name = target.rpartition("/")
    try:
        with Folder(parent or ("/" if target.startswith("/") else ".")).writing(name) as stream:
            stream.write(made.encode())
    except OSError as error:
        raise OutputError(f"the page {target} cannot be written: {error}") from error


def find(path: str) -> Found:
    """Look at an output."""
    totals, folder = read_totals(path), open_output(path)
    held = find_job(folder) or {}
    job = held.get("job", {})
    names = [name for name in folder.entries(RUNS) if name.endswith(".json")]
    reports = [r for r in folder.read_all_json([f"{RUNS}/{name}" for name in names]) if r]
    found = Found(totals, job, reports, Lengths(), {})
    try:
        return _look_at_rows(found, folder, read_kept(folder, held))
    except (OSError, pa.ArrowException) as error:
        return Found(totals, job, reports, Lengths(), {}, f"Rows could not be read ({error}).")


def _look_at_rows(found: Found, folder: Folder, marks: Sequence[Mark]) -> Found:
    struct = None if found.job.get("output.layout") == "flat" else found.job.get("output.name", "prediction")
    names = Names(struct, found.job.get("output.prefix", ""))
    lengths = read_lengths(folder, [mark for mark in marks if not mark.made.is_retry], names)
    failed = find_failed(folder, marks, names, found.key, found.totals.failed_by_code)
    moved = any(mark.moved for mark in marks)
    told = "The rows that succeeded are in a table, which is not read: lengths are missing here." if moved else None
    if told and found.job.get("output.mode") == "merge":
        told += " Rows count as often as they were scored, also those that others have replaced since."
    return Found(found.totals, found.job, found.reports, lengths, failed, told)


def make_page(found: Found) -> str:
    """The page, as HTML."""
    environment = Environment(
        loader=PackageLoader("jobs.telling", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    totals = found.totals
    return environment.get_template("page.html").render(
        path=totals.path,
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        tiles=_tiles(found),
        ran=_what_ran(found),
        question=found.job.get("template"),
        figures=[(drawn, Markup(drawn.svg)) for drawn in _draw(found)],
        unread=found.unread,
        runs=_runs(found),
        failures=_failures(found),
        key=found.key,
        engines=_engines(found),
        money=_money(found),
        forecast=_forecast(found),
        savings=tell_savings(totals, found.compared, found.lengths, found.job),
        warnings=list(dict.fromkeys(w for r in found.reports for w in r.get("warnings", []))),
        strangers=totals.strangers,
    )


def _tiles(found: Found) -> Lines:
    totals = found.totals
    usd = [r["usd"] for r in found.reports if r.get("usd") is not None]
    tiles = [
        ("rows", f"{totals.rows:,}"),
        ("succeeded", f"{totals.succeeded:,}"),
        ("failed", f"{totals.failed:,}"),
        ("tokens in", f"{totals.counts.input_tokens:,}"),
        *([("tokens out", f"{totals.counts.output_tokens:,}")] if totals.counts.output_tokens else []),
        ("rows/s", _rate(totals.counts.rows, totals.scoring_s)),
        ("tokens/s", _rate(totals.counts.input_tokens, totals.scoring_s)),
    ]
    if usd or totals.provider_usd is not None:
        tiles.append(("USD", tell_usd(sum(usd) + (totals.provider_usd or 0))))
    return tiles


def _rate(amount: int, seconds: float) -> str:
    return tell_rate(amount / seconds) if seconds else "–"


def _what_ran(found: Found) -> Lines:
    job, last = found.job, found.worked
    source = next((str(job[name]) for name in ("input.path", "input.table", "input.query") if job.get(name)), None)
    told = {
        "task": job.get("task"),
        "model": last.get("model") or job.get("model"),
        "revision": last.get("revision") or job.get("revision"),
        "input": source,
        "output": job.get("output.table"),
        "max_tokens": job.get("max_tokens"),
        "overflow": job.get("overflow"),
        "device": last.get("device"),
        "precision": last.get("precision"),
        "micro-batches": last.get("batches"),
        "versions": ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items()),
    }
    return [(name, str(value)) for name, value in told.items() if value]


def _draw(found: Found) -> Iterable[Drawn]:
    """The figures that there is something to draw for."""
    totals, made = found.totals, [i for i in found.first if i.counts.rows]
    if made:
        yield figures.draw_rows(totals.increments)
        yield figures.draw_rates(made, of="rows")
    if any(i.counts.input_tokens for i in made):
        yield figures.draw_rates(made, of="tokens")
    if len(found.lengths.tokens):
        yield figures.draw_lengths(found.lengths.tokens, most=sum(i.counts.scored_rows for i in made))
    if any(i.counts.padded_tokens for i in made):
        yield figures.draw_padding(made)
    if totals.failed_by_code:
        yield figures.draw_failures(totals.failed_by_code)
    if len(totals.counts.engines) > 1:
        yield figures.draw_engines(totals.counts.engines)


def _runs(found: Found) -> list[list[str]]:
    reports = {r["run_id"]: r for r in found.reports}
    return [
        [
            run.run_id, run.command, run.status, f"{run.increments:,}", f"{run.rows:,}", f"{run.failed:,}",
            _rate(run.rows, run.scoring_s), _rate(run.input_tokens, run.scoring_s),
            "–" if run.wall_s is None else tell_duration(run.wall_s),
            _usd(reports.get(run.run_id, {})),
        ]
        for run in found.totals.runs
    ]  # fmt: skip


def _usd(report: dict[str, Any]) -> str:
    paid = [usd for name in ("usd", "provider_usd") if (usd := report.get(name)) is not None]
    return tell_usd(sum(paid)) if paid else "–"


def _failures(found: Found) -> list[tuple[str, str, list[str]]]:
    by_code = sorted(found.totals.failed_by_code.items(), key=lambda pair: -pair[1])
    return [(code, f"{count:,}", found.failed.get(code, [])) for code, count in by_code]


def _engines(found: Found) -> list[tuple[str, str, str]]:
    engines = found.totals.counts.engines
    total = max(1, sum(engines.values()))
    ranked = sorted(engines.items(), key=lambda pair: -pair[1])
    shown = [(name, f"{rows:,}", f"{rows / total:.1%}") for name, rows in ranked[:_ENGINES]]
    if rest := sum(rows for _, rows in ranked[_ENGINES:]):
        shown.append((f"{len(ranked) - _ENGINES:,} others", f"{rest:,}", f"{rest / total:.1%}"))
    return shown


def _money(found: Found) -> Lines:
    lines: Lines = []
    priced = [r for r in found.reports if r.get("usd") is not None]
    if priced:
        usd, rows = sum(r["usd"] for r in priced), sum(r["rows"] for r in priced)
        lines.append(("machines, by cost.usd_per_hour", f"{tell_usd(usd)} USD"))
        if rows:
            lines.append(("  for a million rows", f"{tell_usd(usd / rows * _MILLION)} USD"))
    hosted = [r for r in found.reports if r.get("provider_usd") is not None]
    if hosted:
        paid, rows = sum(r["provider_usd"] for r in hosted), sum(r["rows"] for r in hosted)
        of = f" of {day}" if (day := hosted[-1].get("prices_of")) else ""
        lines.append((f"the provider's tokens, by list prices{of}", f"{tell_usd(paid)} USD"))
        live = [r["live_usd"] for r in hosted if r.get("live_usd") is not None]
        if live:
            lines.append(("  without the discount of batches", f"{tell_usd(sum(live))} USD"))
        if rows:
            lines.append(("  for a million rows", f"{tell_usd(paid / rows * _MILLION)} USD"))
    return lines


def _forecast(found: Found) -> Lines:
    """What is left, and what more of the same would take, at the last run's rate."""
    increments, last, lines = found.first, found.last, []
    run_id = increments[-1].run_id if increments else None
    by_bytes, by_rows = bytes_per_s(increments, run_id), rows_per_s(increments, run_id)
    left = last.get("left", {})
    if (size := left.get("bytes")) and by_bytes:
        files = f"{left['files']:,} files, " if "files" in left else ""
        lines.append((f"left: {files}{size / 1e6:,.1f} MB", f"about {tell_duration(size / by_bytes)}"))
    elif (rows := left.get("rows")) and by_rows:
        lines.append((f"left: {rows:,} rows", f"about {tell_duration(rows / by_rows)}"))
    elif left:
        lines.append(("left", ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in left.items())))
    if by_rows:
        lines.append(("a million more such rows", f"about {tell_duration(_MILLION / by_rows)}"))
        if (worked := found.worked).get("usd") and worked.get("rows"):
            lines.append(("  cost", f"about {tell_usd(worked['usd'] / worked['rows'] * _MILLION)} USD"))
    return lines
