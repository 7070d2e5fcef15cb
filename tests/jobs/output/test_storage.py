"""Drivers on storage that lies, tears and stalls, killed at any operation, two at a time, by clocks that take steps.

The oracle: whatever happened, the next undisturbed run completes; each row is read once; nothing else is; and what was
once committed stays as it was, but for what an overwrite replaces.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.errors import JobError
from jobs.folder import Folder
from jobs.input.spans import Span
from jobs.job_file import load_settings
from jobs.output.adopting import read_committed
from jobs.output.committed import Committed, Increment, name_of
from jobs.output.directory import Output
from jobs.output.job_note import find_job
from jobs.output.marks import Mark
from jobs.output.placing import find_strangers
from jobs.settings import Settings
from tests.stores import Faults, Killed, Kind, driver_on, pretend

WriteJob = Callable[..., Path]

_INCREMENTS = 4


def _mark(seed: int) -> list[pytest.MarkDecorator]:
    """A few for every day, some more, and many."""
    return [] if seed < 9 else [pytest.mark.long] if seed < 45 else [pytest.mark.slow]


_SEEDS = [pytest.param(seed, marks=_mark(seed), id=f"seed {seed}") for seed in range(200)]


class Job:
    """A job of a few increments on a store, run by drivers with faults."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.path = settings, Path(settings.output.path)
        self.done: list[str] = []

    def drive(self, faults: Faults, *, overwrite: bool = False, increments: int = _INCREMENTS) -> str:
        """One run, up to its end or to a fault; returns what happened."""
        run_id = uuid.uuid4().hex[:8]
        with driver_on(faults):
            try:
                output = Output(self.settings)
                with output.lock():
                    if not overwrite and output.is_begun():
                        output.check_whole("iceberg")
                    output.begin(overwrite=overwrite)
                    for number in range(increments):
                        if not output.is_committed(number):
                            self._commit(output, number, run_id)
                    output.settle_last()
            except Killed:
                return "killed"
            except (JobError, OSError) as error:
                return f"{type(error).__name__}: {error}"
        return "completed"

    def _commit(self, output: Output, number: int, run_id: str) -> None:
        draft = output.draft_of(name_of(number), run_id)
        for outcome in ("succeeded", "failed"):  # what Spark does is not what is tried here
            folder = self.path / draft / f"outcome={outcome}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"part-{uuid.uuid4().hex}.parquet").write_text(f"{number} {outcome}")
            (folder / ".part.crc").write_text("checksum")
        (self.path / draft / "_SUCCESS").write_text("")
        output.commit(draft, number, counts=Committed(rows=2), run_id=run_id, input_span=Span(None, number))

    def committed(self) -> dict[int, Mark]:
        """What is committed, on a look without faults."""
        folder = Folder(str(self.path))
        return {mark.made.number: mark for mark in read_committed(folder, find_job(folder))}

    def rows(self) -> Counter[str]:
        """What any reader finds."""
        return Counter(file.read_text() for file in self.path.glob("**/*.parquet"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the killed ones' threads
@pytest.mark.parametrize("seed", _SEEDS)
def test_whatever_storage_does_nothing_is_lost_doubled_or_left_over(
    seed: int, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, kinds = random.Random(seed), ("disk", "hdfs", "store")
    kind: Kind = kinds[seed % 3]
    clock = pretend(monkeypatch, kind)
    job, told = Job(load_settings(write_job())), []
    before: dict[int, Mark] = {}
    for _ in range(draw.randint(1, 4)):
        overwrite = draw.random() < 0.25
        clock.step_s = draw.choice([0.0, 0.0, -3600.0, 3600.0])
        way = draw.choice(["kill", "lie", "stall"])
        if way == "stall" and kind != "disk":
            told.append(_stand_still(job, draw, overwrite=overwrite))
            overwrite = True  # the other one may have done so
        else:
            kill_at = draw.randint(1, 90) if way == "kill" else -1
            faults = Faults(draw.random(), kill_at=kill_at, lies=draw.choice([0.0, 0.02, 0.1]))
            told.append(job.drive(faults, overwrite=overwrite, increments=draw.randint(1, _INCREMENTS)))
        now = job.committed()
        if not overwrite:
            assert {n: mark.files for n, mark in before.items()}.items() <= {n: m.files for n, m in now.items()}.items()
        before = now
    until = time.monotonic() + 10
    while (last := job.drive(Faults(0))).startswith("BusyError") and time.monotonic() < until:
        pass  # the lease of a driver that was killed has not ended
    told.append(last)
    assert told[-1] == "completed", told
    marks = job.committed()
    assert sorted(marks) == list(range(_INCREMENTS)), told
    assert job.rows() == Counter(f"{n} {o}" for n in range(_INCREMENTS) for o in ("succeeded", "failed")), told
    assert find_strangers(Folder(str(job.path)).sizes(), marks.values()) == [], told
    assert {path.name for path in job.path.glob("increment=*/**/*")} & {"_SUCCESS", ".part.crc"} == set(), told


def _stand_still(job: Job, draw: random.Random, *, overwrite: bool) -> str:
    """A driver stands still, as on a machine that is suspended; another one comes, works, and may be killed."""
    sleeper, told = Faults(draw.random(), stall_at=draw.randint(15, 120)), list[str]()
    thread = threading.Thread(target=lambda: told.append(job.drive(sleeper, overwrite=overwrite)))
    thread.start()
    while not sleeper.stalled.wait(0.05) and thread.is_alive():
        pass
    other = Faults(draw.random(), kill_at=draw.choice([-1, draw.randint(20, 120)]))
    threading.Event().wait(1.2 if sleeper.stalled.is_set() else 0)  # its lease has ended
    told.append(job.drive(other, overwrite=draw.random() < 0.4, increments=draw.randint(1, _INCREMENTS)))
    sleeper.wake.set()
    thread.join()
    return " while ".join(told)


@pytest.mark.parametrize("kill_at", range(1, 60, 4))
def test_an_earlier_gristmill_s_output_is_brought_up_to_date_whenever_that_is_killed(
    kill_at: int, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "hdfs" if kill_at % 8 == 1 else "store")
    job, made = Job(load_settings(write_job())), asdict(Increment(0, "run", "2026", 1.0, Committed(rows=2)))
    job.drive(Faults(0), increments=1)  # for its job file
    held = find_job(Folder(str(job.path))) or {}
    for name in ("increment=000000", "_gristmill/marks", "_gristmill/retries"):
        shutil.rmtree(job.path / name)
    for file in (job.path / "_gristmill").glob("job*.json"):
        file.unlink()
    (job.path / "_gristmill/job.json").write_text(json.dumps({name: held[name] for name in ("job", "schema")}))
    for number, parent in ((0, "."), (1, "."), (1_000_000, "."), (1_000_000, "_gristmill/retries")):
        place = job.path / parent / name_of(number)
        for outcome in ("succeeded", "failed"):
            (place / f"outcome={outcome}").mkdir(parents=True)
            (place / f"outcome={outcome}/part-0.parquet").write_text(f"{number} {outcome}{parent[1:]}")
        span = asdict(Span(None, number))
        (place / "_increment.json").write_text(json.dumps({**made, "number": number, "input_span": span}))
    assert sorted(job.committed()) == [0, 1, 1_000_000]  # as `gristmill report` looks at it
    job.drive(Faults(kill_at, kill_at=kill_at), increments=2)
    assert sorted(job.committed()) == [0, 1, 1_000_000]
    job.drive(Faults(kill_at, lies=0.2), increments=2)
    time.sleep(1.5)  # their leases end
    told = job.drive(Faults(0), increments=2)
    assert told == "completed"
    assert sorted(job.committed()) == [0, 1, 1_000_000]
    assert job.rows() == Counter(f"{n} {o}" for n in (0, 1, 1_000_000) for o in ("succeeded", "failed"))
    assert not list(job.path.rglob("_increment.json"))
    kept = [path.name for path in (job.path / "_gristmill/retries").rglob("part-*")]
    assert kept == ["part-0.parquet.kept"] * 2
