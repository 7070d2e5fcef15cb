"""`gristmill watch OUT`: a run as it looks from another terminal, by what it commits and by its live file.

It only reads. Whether somebody works there is told by the driver's process where that is on this machine, and else by
its live file, which goes on as long as it does.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live as Screen
from rich.markup import escape
from rich.table import Table

from jobs.errors import OutputError
from jobs.increments.sizing import tell_duration
from jobs.output.adopting import read_committed
from jobs.output.committed import Increment
from jobs.output.job_note import LIVE, RUNS, find_job, open_output
from jobs.output.marks import Mark
from jobs.telling.live import EVERY_ON_STORE_S, Live
from udfs.executor import is_running

_EVERY_S = 2.0
_SILENT_S = 3 * EVERY_ON_STORE_S  # without a sign, a driver elsewhere is taken for dead


class Follower:
    """Looks at an output again and again, and reads each mark once.

    Args:
        path: The output directory.
        clock: Tells seconds.

    Raises:
        OutputError: It is none.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = open_output(path), clock
        self._marks: list[Mark] = []
        self._home: str | None = None
        self._beat: tuple[str, int] | None = None
        self._since = clock()

    def look(self) -> tuple[Live | None, list[Increment]]:
        """How the run stands that was there last, and what is committed; None where no run has left a sign."""
        held = find_job(self._folder) or {}
        if held.get("home") != self._home:  # a job that started afresh
            self._home, self._marks = held.get("home"), []
        self._marks = read_committed(self._folder, held, self._marks)
        told = self._folder.find_json(LIVE)
        return (Live.from_json(told) if told else None), [mark.made for mark in self._marks]

    def works(self, live: Live) -> bool | None:
        """Whether the run's driver is at work; None where it is elsewhere, and was not silent for long enough."""
        if live.status != "running":
            return False
        if live.host == platform.node():
            return is_running(live.pid, live.process)
        if (live.run_id, live.beat) != self._beat:
            first, self._beat, self._since = self._beat is None, (live.run_id, live.beat), self._clock()
            return None if first else True
        return False if self._clock() - self._since > _SILENT_S else None

    def has_ended(self, live: Live) -> bool:
        """The run has left its report."""
        return self._folder.exists(f"{RUNS}/{live.run_id}.json")


def follow(
    path: str,
    console: Console,
    *,
    wait_s: float = 0.0,
    every_s: float = _EVERY_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run until it has ended.

    Args:
        path: The output directory.
        console: Where it is shown: a table that changes on a terminal, else a line whenever something is committed.
        wait_s: So long a run is waited for that has just been started: it leaves no sign before Spark is there.
        every_s: Between two looks.
        sleep: Waits.

    Raises:
        OutputError: There is no output.
    """
    for look in range(int(wait_s / every_s)):
        if _is_at_work(path):
            break
        if not look:
            _end(console, f"nobody runs in {path} yet; waiting {wait_s:g} s for a run to begin")
        sleep(every_s)
    follower, shown = Follower(path), -1
    screen = Screen(console=console, auto_refresh=False, transient=True)
    with screen if console.is_terminal else contextlib.nullcontext():
        while True:
            live, increments = follower.look()
            if live is None:
                _end(console, f"nobody runs in {path}: no run has left a sign there")
                return
            works = follower.works(live)
            if console.is_terminal:
                screen.update(show_live(live, increments), refresh=True)
            elif len(increments) != shown:
                shown = len(increments)
                console.print(tell_line(live), soft_wrap=True, highlight=False, markup=False)
            if works is False:
                break
            sleep(every_s)
    if console.is_terminal:
        console.print(show_live(live, increments))
    if live.status == "running" and not follower.has_ended(live):
        _end(console, f"nobody runs in {path}: the last sign of run {live.run_id} is of {live.told_at}, and its driver "
                      "is gone; the same command goes on from there")  # fmt: skip
        return
    _end(console, f"run {live.run_id} has ended: {live.status}")


def _is_at_work(path: str) -> bool:
    with contextlib.suppress(OutputError):
        follower = Follower(path)
        live, _ = follower.look()
        return live is not None and follower.works(live) is not False
    return False


def _end(console: Console, line: str) -> None:
    console.print(escape(line), style="dim", soft_wrap=True, highlight=False)


def tell_line(live: Live) -> str:
    """How a run stands, in a line."""
    counts = live.counts
    parts = [f"{live.increments:,} increments", f"{counts.succeeded:,} succeeded", f"{counts.failed:,} failed"]
    if live.increment is not None and live.increment_rows is not None:
        done = f"{live.increment_done:.0%} of " if live.increment_done is not None else ""
        parts.append(f"scoring increment {live.increment}: {done}{live.increment_rows:,} rows")
    if live.seconds_left is not None:
        parts.append(f"about {tell_duration(live.seconds_left)} left")
    return f"{live.told_at} {live.run_id} {live.status}: {', '.join(parts)}"


def show_live(live: Live, increments: list[Increment]) -> Table:
    """How a run stands, as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in _lines(live, increments):
        table.add_row(name, escape(value))
    return table


def _lines(live: Live, increments: list[Increment]) -> list[tuple[str, str]]:
    counts, engines = live.counts, live.engines
    ran_s = (datetime.fromisoformat(live.told_at) - datetime.fromisoformat(live.started_at)).total_seconds()
    before = len(increments) - live.increments
    lines = [
        ("run", f"{live.run_id}, {live.command}, {live.status}, on {live.host}"),
        (
            "for",
            f"{tell_duration(ran_s)}; looked at {datetime.fromisoformat(live.told_at).astimezone(UTC):%H:%M:%S} UTC",
        ),
        ("model", f"{live.model}, {live.task}"),
        ("increments", f"{live.increments:,}" + (f", after {before:,} of earlier runs" if before > 0 else "")),
        ("rows", f"{counts.succeeded:,} succeeded, {counts.failed:,} failed"),
    ]
    lines += [(f"  {code}", f"{count:,}") for code, count in counts.failed_by_code.items()]
    if live.scoring_s:
        rates = f"{counts.rows / live.scoring_s:,.0f} rows/s, {counts.input_tokens / live.scoring_s:,.0f} tokens/s"
        lines.append(("committed at", rates))
    if live.increment is not None and live.increment_rows is not None:
        done = "" if live.increment_done is None else f", {live.increment_done:.0%} of its tasks done"
        lines.append(("now", f"increment {live.increment} of {live.increment_rows:,} rows{done}"))
    if told := live.provider:
        lines.append(
            (
                "batches",
                f"{told.in_flight} in flight, {told.ended} ended; {told.answered:,} of {told.requests:,} answered",
            )
        )
    if engines:
        now = "" if engines.tokens_per_s is None else f", {engines.tokens_per_s:,.0f} tokens/s now"
        lines.append(("engines", f"{engines.running} of {engines.starts} started, {engines.deaths} died{now}"))
        lines.append(("queue", f"{engines.waiting_items:,} items, {engines.waiting_tokens:,} tokens"))
    if live.seconds_left is not None:
        lines.append(("left", f"about {tell_duration(live.seconds_left)}"))
    return lines
