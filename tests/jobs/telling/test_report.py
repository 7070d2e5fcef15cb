from __future__ import annotations

from datetime import UTC, datetime

from jobs.job_file import load_settings
from jobs.output.committed import Committed, Increment
from jobs.telling.report import make_report
from tests.conftest import ROOT


def test_a_report_says_whether_micro_batches_were_packed() -> None:
    engines = {"here:1:cuda:0/bfloat16/packed": 3, "there:2:cpu/float32/padded": 1}
    counts = Committed(rows=4, succeeded=4, engines=engines)
    increment = Increment(number=0, run_id="r", committed_at="", seconds=1.0, counts=counts)
    report = make_report(
        load_settings(ROOT / "conf/embeddings.yaml"),
        [increment],
        run_id="r",
        started_at=datetime.now(UTC),
        status="completed",
    )
    assert (report.device, report.precision, report.batches) == ("cpu, cuda:0", "bfloat16, float32", "packed, padded")


def test_a_key_that_was_read_is_no_key_to_be_shown_however_it_is_spelt() -> None:
    settings = load_settings(ROOT / "conf/embeddings.yaml", ["input.key=[Product_ID, TITLE]"])
    report = make_report(settings, [], run_id="r", started_at=datetime.now(UTC), status="completed")
    assert report.key == ["Product_ID"]
