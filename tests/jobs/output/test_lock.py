from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BusyError
from jobs.folder import Folder
from jobs.output.lock import Lease, hold_lock
from tests.conftest import ROOT
from tests.stores import Clock, overtake

_HOLD = """
import sys, time
from jobs.folder import Folder
from jobs.output.lock import hold_lock
with hold_lock(Folder(sys.argv[1]), "_gristmill/lock"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_told_who_is_there_and_a_killed_one_is_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(BusyError, match=f"process {holder.pid} on"),
        hold_lock(Folder(str(tmp_path)), "_gristmill/lock"),
    ):
        pass
    holder.kill()
    holder.wait()
    with hold_lock(Folder(str(tmp_path)), "_gristmill/lock"):
        pass


def test_a_lease_is_kept_while_it_is_renewed_and_free_when_it_is_not(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))

    def lease(lease_s: float, renew_s: float) -> Lease:
        return Lease(folder, "lock", lease_s=lease_s, renew_s=renew_s, settle_s=0.1)

    with lease(1.0, 0.1):
        time.sleep(1.5)
        with pytest.raises(BusyError), lease(1.0, 0.1):
            pass
    with lease(1.0, 60):  # the one before gave it back: nobody has to wait
        pass
    lease(0.5, 60).__enter__()  # a driver that is killed: it renews no more
    time.sleep(0.6)
    with lease(1.0, 0.1):
        pass


def test_of_two_drivers_that_find_a_lease_free_one_has_it(tmp_path: Path) -> None:
    folder, told = Folder(str(tmp_path)), queue.SimpleQueue[bool]()

    def take() -> None:
        try:
            with Lease(folder, "lock", settle_s=0.5, renew_s=60):
                told.put(True)
                time.sleep(1)
        except BusyError:
            told.put(False)

    drivers = [threading.Thread(target=take) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert sorted(told.get() for _ in drivers) == [False, False, False, True]


def test_a_renewal_that_arrives_late_replaces_no_new_owner(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    late = Lease(folder, "lock", settle_s=0, lease_s=0.1, renew_s=60, watch_s=0)
    old = late.__enter__()
    time.sleep(0.2)
    with Lease(folder, "lock", settle_s=0, renew_s=60, watch_s=0) as claim:
        late._renew()
        claim.check()
        with pytest.raises(BusyError, match="was taken over"):
            old.check()
    with Lease(folder, "lock", settle_s=0, renew_s=60, watch_s=0) as claim:  # nor the one after it
        late._renew()
        claim.check()


def test_a_driver_whose_lease_is_taken_over_is_told_at_once_and_may_not_commit(tmp_path: Path) -> None:
    folder, told = Folder(str(tmp_path)), threading.Event()
    with Lease(folder, "lock", told.set, renew_s=0.05, settle_s=0) as claim:
        claim.check()
        time.sleep(0.2)  # it is renewed
        claim.check()
        assert not told.is_set()
        overtake(folder, "lock")
        assert told.wait(5)
        with pytest.raises(BusyError, match=r"was taken over by process \d+ on .* did not renew its lock in time"):
            claim.check()
    (note,) = folder.entries("lock")
    assert "released" not in folder.read_json(f"lock/{note}")  # it is the other driver's


def test_a_lease_that_cannot_be_renewed_is_lost_when_it_ends_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.output.lock._PATIENCE_S", 0.3)
    folder, told = Folder(str(tmp_path)), threading.Event()
    with Lease(folder, "lock", told.set, lease_s=0.6, renew_s=0.05, settle_s=0) as claim:
        monkeypatch.setattr(folder, "read_json", _raise_os_error)  # a store that does not answer the renewer
        assert not told.wait(0.3)
        assert told.wait(5)
        with pytest.raises(BusyError, match="could not be renewed"):
            claim.check()


def _raise_os_error(_: str) -> None:
    raise OSError("no route to host")


def test_a_lease_that_once_is_not_found_or_not_read_is_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    with Lease(folder, "lock", renew_s=0.1, settle_s=0):
        newcomer = Folder(str(tmp_path))
        answers: list[Exception | None] = [FileNotFoundError("lock"), FileNotFoundError("lock"), None]

        def read_json(name: str) -> Any:
            if answers and (error := answers.pop(0)):
                raise error
            return folder.read_json(name)

        monkeypatch.setattr(newcomer, "read_json", read_json)
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"), Lease(newcomer, "lock", settle_s=0):
            pass
        answers.append(OSError("no route to host"))
        with pytest.raises(OSError, match="no route"), Lease(newcomer, "lock", settle_s=0):
            pass


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_no_step_of_a_clock_makes_a_live_drivers_lease_free_or_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    folder, told = Folder(str(tmp_path)), threading.Event()
    with Lease(folder, "lock", told.set, renew_s=0.1, settle_s=0) as claim:
        monkeypatch.setattr("jobs.output.lock.time", clock := Clock())  # of whoever comes, and of ours
        clock.step_s = step_s
        with pytest.raises(BusyError), Lease(folder, "lock", renew_s=0.4, settle_s=0):
            pass
        claim.check()
        assert not told.wait(0.3)


def test_a_driver_that_died_with_a_clock_an_hour_ahead_holds_nobody_up_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.output.lock.time", clock := Clock())
    folder, clock.step_s = Folder(str(tmp_path)), 3600.0
    Lease(folder, "lock", settle_s=0, lease_s=0.3, renew_s=60).__enter__()
    clock.step_s = 0.0
    with Lease(folder, "lock", settle_s=0, lease_s=0.3, renew_s=60):
        pass


def test_a_torn_lease_is_watched_and_then_free(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/000000001-a.json").write_text('{"pid": 1, "unt')
    with Lease(folder, "lock", renew_s=0.1, settle_s=0) as claim:
        claim.check()


def test_a_lease_that_is_gone_for_a_moment_is_written_anew_and_not_lost(tmp_path: Path) -> None:
    folder, told = Folder(str(tmp_path)), threading.Event()
    with Lease(folder, "lock", told.set, renew_s=0.05, settle_s=0) as claim:
        folder.delete(f"lock/{claim.owner}.json")
        assert not told.wait(2)
        claim.check()


def test_a_driver_that_slept_while_its_lease_was_taken_and_given_back_has_lost_it(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    lease = Lease(folder, "lock", settle_s=0, renew_s=60)
    with lease as claim:
        folder.delete(f"lock/{claim.owner}.json")  # another one has come and gone
        lease._until = 0.0  # our own time is over
        assert not lease.is_mine()
        assert not lease._try_to_renew()
        assert folder.entries("lock") == []
