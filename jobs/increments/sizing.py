"""How large an increment is to be, and whether the job will make its deadline.

An increment takes about ten minutes: so much is lost by a kill at most, and its ends, in which devices idle for a few
seconds, are far apart. How many bytes that is, earlier increments tell; the first one is a small sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

from jobs.input.files import name_some
from jobs.output.committed import Increment

TARGET_S = 600.0
SAMPLE_BYTES = 1 << 20
_ENCODER_TIMES, _WRITER_TIMES = 64, 4  # so many times a sample on a GPU
_MOST_BYTES = 1 << 40
BATCHED_BYTES = 1 << 30  # of a provider's batches, which take hours whatever their size
TABLE_SAMPLE_BYTES = 128 << 20  # of a table's stream: a usual file
LEAST_S = 30.0  # less is not worth the ends of an increment, not even before a deadline
_RECENT = 3  # increments that tell today's rate
_HUGE_BYTES = 1 << 30  # of text, this takes longer on any device


def bytes_per_s(increments: Sequence[Increment], run_id: str | None = None) -> float | None:
    """Input bytes that a second gets through, by the longest of the last few increments; None if nothing tells.

    Args:
        increments: The output's, in order.
        run_id: This run, whose own increments count before those of others: machines change.
    """
    return _per_s(increments, run_id, lambda increment: increment.input_bytes or 0)


def rows_per_s(increments: Sequence[Increment], run_id: str | None = None) -> float | None:
    """As `bytes_per_s`, in rows."""
    return _per_s(increments, run_id, lambda increment: increment.counts.rows)


def take_for_full(increments: Iterable[Increment]) -> list[Increment]:
    """A table's increments with the bytes that they were cut to, where the same run had more to score after them.

    What a stream of a table reads, nothing tells. Where its files are larger than that, an increment had more, and its
    rate is taken for less than it was: the next ones grow until they take as long as they should.
    """
    known = list(increments)
    full = {a.number for a, b in pairwise(known) if a.input_bound and a.run_id == b.run_id}
    return [replace(i, input_bytes=i.input_bound) if i.number in full else i for i in known]


def sample_bytes(*, on_gpu: bool, writes: bool) -> int:
    """Input bytes of the first increment, which tells the rate: what a device is likely to get through in seconds.

    Args:
        on_gpu: Of the device; a GPU is a hundred times as fast as a few cores.
        writes: The model does, a token at a time.
    """
    return SAMPLE_BYTES * ((_WRITER_TIMES if writes else _ENCODER_TIMES) if on_gpu else 1)


def choose_bytes(
    rate: float | None, *, left_s: float | None, of_table: bool = False, sample: int = SAMPLE_BYTES
) -> int:
    """Input bytes of an increment.

    Args:
        rate: Bytes a second; None takes a sample.
        left_s: Until the deadline: what cannot be scored by then is better left for another run.
        of_table: It is of a table's stream, whose files are not known.
        sample: Of the first increment.
    """
    if rate is None:
        return TABLE_SAMPLE_BYTES if of_table else sample
    target_s = TARGET_S if left_s is None else max(LEAST_S, min(TARGET_S, 0.8 * left_s))
    return min(_MOST_BYTES, max(SAMPLE_BYTES if of_table else 1, int(rate * target_s)))  # of a table less is a file too


def is_off(size: int, *, wanted: int, left: int | None) -> bool:
    """Whether increments of this size are so far from the wanted one that it pays to begin anew.

    Args:
        size, wanted: In bytes.
        left: Bytes that are still to be scored.
    """
    if left is not None and left <= min(size, wanted):
        return False
    return not size / 2 <= wanted <= 2 * size


def forecast(what: str, need_s: float, *, now: datetime, deadline: datetime) -> tuple[bool, str]:
    """Whether the rest is done before the deadline, and a line that says so and how long it takes."""
    line = f"{what} to go, about {tell_duration(need_s)} at the rate so far"
    left_s = (deadline - now).total_seconds()
    by = f"{deadline:%Y-%m-%d %H:%M:%S}"
    if need_s <= left_s:
        return True, f"{line}: in time for the deadline, {by}"
    share = max(0.0, left_s) / need_s
    return False, f"{line}: too long for the deadline, {by}; about {share:.0%} of it will be scored"


def tell_huge(sizes: Mapping[str, int], rate: float | None) -> str | None:
    """A warning about files that are more than twice what an increment should hold, each alone; None if there is none.

    Args:
        sizes: Of the files that are still to be scored, in bytes.
        rate: Bytes a second; where it is not known, only files that are too large for any device are told.
    """
    holds = rate * TARGET_S if rate else _HUGE_BYTES
    huge = sorted((path for path, size in sizes.items() if size > 2 * holds), key=lambda path: -sizes[path])
    if not huge:
        return None
    largest = sizes[huge[0]]
    takes = f", about {tell_duration(largest / rate)} at the rate so far" if rate else ""
    return (
        f"too large for an increment of ten minutes: {name_some(huge)} (the largest: {largest / 1e6:,.1f} MB{takes}). "
        "A file is never split, and a kill costs all that was scored of it; write it as "
        f"{math.ceil(largest / holds):,} files or more, say by Spark's `repartition`"
    )


def tell_duration(seconds: float) -> str:
    """Seconds, minutes or hours, in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _per_s(increments: Sequence[Increment], run_id: str | None, amount: Callable[[Increment], int]) -> float | None:
    timed = [i for i in increments if amount(i) and i.seconds > 0 and _scored_share(i) > 0]
    own = [i for i in timed if i.run_id == run_id]
    recent = (own or timed)[-_RECENT:]
    if not recent:
        return None
    longest = max(recent, key=lambda i: i.seconds)
    return amount(longest) * _scored_share(longest) / longest.seconds


def _scored_share(increment: Increment) -> float:
    """Rows that no deadline and no `--cancel` cut off."""
    counts = increment.counts
    return 1 - counts.untried / counts.rows if counts.rows else 0.0
