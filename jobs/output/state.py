"""A job's state in an output: how it is begun, put in order after a kill, and takes the place of the job before."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from jobs.folder import Folder
from jobs.output.adopting import adopt_old_marks
from jobs.output.checks import check_no_increments, has_lost
from jobs.output.committed import name_of
from jobs.output.fingerprint import make_key, seal_description
from jobs.output.job_note import HOME, MOVED, RUNS, STATE, find_job, write_job
from jobs.output.lock import Claim
from jobs.output.marks import Mark, Marks
from jobs.output.placing import find_strangers, find_unplaced, put_in_place, take_away

WRITING = f"{HOME}/writing"
_AFRESH = "job-"  # names of the state of jobs that started afresh
_LAYOUT = 2  # of an output; 1 had its marks among the rows


class JobState:
    """The state of one job in an output.

    Args:
        folder: The output directory.
        claim: That the output is this driver's.
        home: Where the state is; None looks it up in the job file.
        in_table: Rows go to a table.
    """

    def __init__(self, folder: Folder, claim: Claim, home: str | None = None, *, in_table: bool = False) -> None:
        self._folder, self.claim, self._home, self._in_table = folder, claim, home, in_table

    @property
    def home(self) -> str:
        """Where it is."""
        if self._home is None:
            return str((find_job(self._folder) or {}).get("home", HOME))
        return self._home

    @property
    def is_looked_up(self) -> bool:
        """Whoever asks only looks at the output: the state is that of the job whose output it is now."""
        return self._home is None

    def marks(self) -> Marks:
        """What is committed."""
        return Marks(self._folder, f"{self.home}/marks", parent=self._parent, held=self._find_driver())

    def place_of(self, number: int) -> str:
        """Where an increment's files belong."""
        return f"{self._parent}/{name_of(number)}".lstrip("/")

    @property
    def _parent(self) -> str:
        return f"{self.home}/{MOVED}" if self._in_table else ""

    def kept_marks(self) -> Marks:
        """The retries whose rows are kept."""
        kept = f"{self.home}/retries"
        return Marks(self._folder, kept, parent=kept, held=self._find_driver())

    def _find_driver(self) -> dict[str, Any] | None:
        """The job file, where there may be more than one driver."""
        return None if self._folder.is_disk else find_job(self._folder)

    def begin(self, about: dict[str, Any], put: Callable[[Mark], None], *, overwrite: bool) -> None:
        """Make the output this job's. With `overwrite`, what is there goes as the first increment is committed.

        Args:
            about: What a new job file says of the job.
            put: Puts a committed increment in its place.
            overwrite: Start afresh.

        Raises:
            OSError: It cannot be written to.
            OutputError: It is another driver's by now, or holds increments and no job file.
        """
        self.claim.check()
        held, stale = find_job(self._folder), self._list_stale()
        self.claim.check()  # what a successor makes from here on is not in the list
        if held is None:
            check_no_increments(self._folder)
            self._home = HOME
            self._make_home()
            write_job(self._folder, self._describe(about), self.claim.owner)
        else:
            self._home = str(held.get("home", HOME))
            self._settle(held, put, overwrite=overwrite)
        for name in stale:  # what was committed of it is in its place by now
            if name != self._home:
                self._folder.delete(name)
        if held is not None and overwrite:
            self._home = f"{HOME}/{_AFRESH}{uuid.uuid4().hex[:12]}"
            self._make_home()
            self._folder.write_json(f"{self._home}/job.json", self._describe(about))

    def take_over(self) -> None:
        """Be the job whose output this is: one that started afresh has committed its first increment.

        Raises:
            OSError: The old results cannot be thrown away; the next run does so.
        """
        before = find_job(self._folder) or {}
        if before.get("home", HOME) == self.home:
            return
        held = self._folder.read_json(f"{self.home}/job.json")
        rows = [path for path in self._folder.sizes() if path.startswith("increment=")]
        state = [f"{before.get('home', HOME)}/{name}" for name in STATE]
        runs = [f"{RUNS}/{name}" for name in self._folder.entries(RUNS)]
        self.claim.check()
        held = {**held, "clearing": [*rows, *state, *runs]}
        write_job(self._folder, held, self.claim.owner)
        self._clear(held)

    def _describe(self, about: dict[str, Any]) -> dict[str, Any]:
        driver = {"driver": self.claim.owner, "marks": []} if self.claim.owner else {}
        return {**about, "layout": _LAYOUT, "home": self.home, **driver}

    def _make_home(self) -> None:
        for name in ("marks", "retries", "files"):  # not to find one is an error from here on
            self._folder.make(f"{self.home}/{name}")

    def _list_stale(self) -> list[str]:
        """What killed runs have left: rows on their way, and the state of jobs that started afresh in vain."""
        homes = [name for name in self._folder.entries(HOME) if name.startswith(_AFRESH)]
        return [f"{HOME}/{name}" for name in homes] + [f"{WRITING}/{name}" for name in self._folder.entries(WRITING)]

    def _settle(self, held: dict[str, Any], put: Callable[[Mark], None], *, overwrite: bool) -> None:
        """Put an output in order: what is committed is in its place, and nothing beside it.

        Args:
            held: Its job file, which may be an earlier gristmill's.
            put: As of `begin`.
            overwrite: What is lost does not matter.
        """
        self._make_home()
        held = self._claim_marks(self._adopt(held))
        if "clearing" in held:  # it started afresh, and was killed as the old results went
            self._clear(held)
        there = self._folder.sizes()
        committed = self.marks().read()
        drafts, lost = find_unplaced(there, [*committed, *self.kept_marks().read()])
        if lost and not overwrite:
            raise has_lost(self._folder, lost[0])
        for mark in drafts:
            put(mark) if mark in committed else put_in_place(self._folder, mark, self.claim.check)
        places = {mark.place for mark in committed}
        strangers = find_strangers(there, committed)
        self.claim.check()
        # `report` tells of whole increments that no mark names.
        take_away(self._folder, (path for path in strangers if path.partition("/")[0] in places))

    def _adopt(self, held: dict[str, Any]) -> dict[str, Any]:
        """The job file, of this layout and without a secret."""
        if held.get("layout", 1) >= _LAYOUT and "key" in held:
            return held
        adopt_old_marks(self._folder, self.home)
        held = {**sealed(held), "layout": _LAYOUT, "home": self.home}
        write_job(self._folder, held, self.claim.owner)
        return held

    def _claim_marks(self, held: dict[str, Any]) -> dict[str, Any]:
        """The job file, by which no job file or mark of an earlier driver that comes late counts from here on."""
        if not self.claim.owner:
            return held
        known = [*self.marks().paths(), *self.kept_marks().paths()]
        self.claim.check()
        held = {**held, "driver": self.claim.owner, "marks": known}
        write_job(self._folder, held, self.claim.owner)
        return held

    def _clear(self, held: dict[str, Any]) -> None:
        """Throw away what the job before has left: what was listed as this one took over, and nothing else."""
        rows = [path for path in held["clearing"] if path.startswith("increment=")]
        take_away(self._folder, rows)
        for path in held["clearing"][len(rows) :]:
            self._folder.delete(path)
        self.claim.check()
        write_job(self._folder, {name: value for name, value in held.items() if name != "clearing"}, self.claim.owner)


def sealed(held: dict[str, Any]) -> dict[str, Any]:
    """A job file whose description holds no secret."""
    if "key" in held:
        return held
    key = make_key()
    return {**held, "job": seal_description(held.get("job", {}), key), "key": key}
