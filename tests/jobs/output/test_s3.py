"""The output's protocol on what speaks S3, through pyarrow: moto's server on this machine's own network."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from jobs.errors import BusyError, OutputError
from jobs.folder import Folder
from jobs.input.spans import Span
from jobs.job_file import load_settings
from jobs.output.adopting import read_committed
from jobs.output.committed import Committed, name_of
from jobs.output.directory import Output
from jobs.output.job_note import find_job
from jobs.output.lock import Lease
from jobs.output.placing import find_strangers
from tests.stores import overtake

pytestmark = pytest.mark.long


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket; pyarrow and boto3 find its server in the environment."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    named = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    for name, value in {**named, "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = uuid.uuid4().hex  # servers of one process have one memory
    boto3.client("s3").create_bucket(Bucket=name)
    monkeypatch.setattr("jobs.output.lock._COMMIT_S", 0)
    yield name
    server.stop()


@pytest.fixture
def output(bucket: str, write_job: Callable[..., Path]) -> Output:
    return Output(load_settings(write_job(output={"path": f"s3://{bucket}/out"})))


def _write(output: Output, draft: str, number: int) -> None:
    """What Spark would write."""
    for outcome in ("succeeded", "failed"):
        name = f"{output.folder._root}/{draft}/outcome={outcome}/part-{uuid.uuid4().hex}.parquet"
        with output.folder._fs.open_output_stream(name) as stream:
            stream.write(f"{number} {outcome}".encode())
    with output.folder._fs.open_output_stream(f"{output.folder._root}/{draft}/_SUCCESS") as stream:
        stream.write(b"")


def _commit(output: Output, number: int, run_id: str = "run") -> None:
    draft = output.draft_of(name_of(number), run_id)
    _write(output, draft, number)
    output.commit(draft, number, counts=Committed(rows=2), run_id=run_id, input_span=Span(None, number))


def _rows(output: Output) -> list[str]:
    names = [file.name for file in output.folder.walk() if file.name.endswith(".parquet")]
    return sorted(output.folder.read_text(name) for name in names)


def test_increments_are_committed_gone_on_with_and_replaced_on_s3(output: Output) -> None:
    assert not output.folder.renames
    with output.lock():
        output.begin()
        _commit(output, 0)
        with pytest.raises(BusyError), Output(output._settings).lock():
            pass
    again = Output(output._settings)
    with again.lock():  # the lease was given back: it is free at once
        again.check_whole("iceberg")
        again.begin()
        assert [again.is_committed(number) for number in (0, 1)] == [True, False]
        _commit(again, 1)
    assert _rows(output) == ["0 failed", "0 succeeded", "1 failed", "1 succeeded"]
    with again.lock():
        again.begin(overwrite=True)
        assert len(_rows(output)) == 4
        _commit(again, 7)
    assert _rows(output) == ["7 failed", "7 succeeded"]


def test_a_driver_that_wakes_up_beside_its_successor_changes_nothing_on_s3(output: Output) -> None:
    with output.lock():
        output.begin()
        _commit(output, 0)
        late = output.draft_of(name_of(1), "late")
        _write(output, late, 1)
        overtake(output.folder)
        with pytest.raises(BusyError, match="was taken over"):
            output.commit(late, 1, counts=Committed(rows=2), run_id="late", input_span=Span(None, 1))
        stray = "increment=000000/outcome=failed/part-late.parquet"  # Spark's own tasks ask nobody
        with output.folder._fs.open_output_stream(f"{output.folder._root}/{stray}") as stream:
            stream.write(b"late")
    folder = output.folder
    assert find_strangers(folder.sizes(), read_committed(folder, find_job(folder))) == [stray]
    successor = Output(output._settings)
    successor.check_whole("iceberg")
    successor.begin()
    assert _rows(output) == ["0 failed", "0 succeeded"]


def test_rows_that_are_gone_from_s3_are_told(output: Output) -> None:
    with output.lock():
        output.begin()
        _commit(output, 0)
    (name, *_) = [file.name for file in output.folder.walk() if file.name.endswith(".parquet")]
    output.folder.delete_files([name])
    with pytest.raises(OutputError, match=f"has lost {name}"):
        output.check_whole("iceberg")


def test_leases_are_kept_renewed_and_taken_over_on_s3(bucket: str) -> None:
    folder = Folder(f"s3://{bucket}/out")
    how: dict[str, Any] = {"lease_s": 2.0, "renew_s": 0.2, "settle_s": 0.2}
    with Lease(folder, "leases", **how) as claim:
        claim.check()
        with pytest.raises(BusyError), Lease(folder, "leases", **how):
            pass
    Lease(folder, "leases", **{**how, "lease_s": 0.2, "renew_s": 60.0}).__enter__()  # a driver that is killed
    with Lease(folder, "leases", **how, watch_s=0.5) as claim:
        claim.check()
