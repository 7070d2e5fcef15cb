"""What a run expects, kept up as increments are committed: whether it makes its deadline, which files are too large.

It reads what was committed before once, and never again: a run of thousands of increments would do little else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from jobs.increments.sizing import LEAST_S, bytes_per_s, forecast, rows_per_s, tell_huge
from jobs.output.committed import Increment


class Outlook:
    """What can be said of the rest of a run.

    Args:
        run_id: The run.
        deadline: Its deadline.
        known: What was committed before, retries left out.
        files: Sizes of the files that are in no committed increment now; None where the input is a table.
        rows: Rows of a table that are in no committed increment; None where nothing tells.
        say, warn: Take a line for the user.
    """

    def __init__(
        self,
        run_id: str,
        deadline: datetime | None,
        known: Sequence[Increment],
        *,
        files: Callable[[], Mapping[str, int]] | None = None,
        rows: int | None = None,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._run_id, self._deadline, self._known, self._files = run_id, deadline, list(known), files
        self._say, self._warn = say, warn
        self._in_time: bool | None = None
        self._judged_files = False
        sizes = files() if files else {}
        self.left_bytes, self._left_rows = sum(sizes.values()) if files else None, rows or 0
        self._judge_files(sizes)
        self._judge_deadline()

    def go_on(self, made: Increment) -> None:
        """Take an increment into account that was committed."""
        self._known.append(made)
        if self.left_bytes is not None:
            self.left_bytes = max(0, self.left_bytes - (made.input_bytes or 0))
        self._left_rows = max(0, self._left_rows - made.counts.rows)
        if self._files and not self._judged_files and self._rate_of_long_ones():
            self._judge_files(self._files())
        self._judge_deadline()

    def _rate_of_long_ones(self) -> float | None:
        """By increments that say something about a large file: in a short one the model is loaded, above all."""
        return bytes_per_s([i for i in self._known if i.seconds >= LEAST_S], self._run_id)

    def _judge_files(self, sizes: Mapping[str, int]) -> None:
        """Warn of files that are too large: at the start, and once more when the rate is known."""
        rate = self._rate_of_long_ones()
        self._judged_files = rate is not None
        if warning := tell_huge(sizes, rate):
            self._warn(warning)

    def _judge_deadline(self) -> None:
        """Say whether the deadline will be kept: as soon as it is known, and whenever that changes."""
        if self._deadline is None:
            return
        rest = self._rest()
        if rest is None:
            return
        in_time, line = forecast(*rest, now=datetime.now(UTC), deadline=self._deadline)
        if in_time != self._in_time:
            self._in_time = in_time
            self._say(line)

    def _rest(self) -> tuple[str, float] | None:
        """What is left, in words and in seconds; None if nothing tells, or nothing is left."""
        if self.left_bytes and (rate := bytes_per_s(self._known, self._run_id)):
            return f"{self.left_bytes / 1e6:,.1f} MB", self.left_bytes / rate
        if self._left_rows and (rate := rows_per_s(self._known, self._run_id)):
            return f"{self._left_rows:,} {'row' if self._left_rows == 1 else 'rows'}", self._left_rows / rate
        return None
