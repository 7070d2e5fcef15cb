"""Jobs whose model is hosted and asked live by the executors, through a provider on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest
from rich.console import Console

from jobs.errors import EndpointError, OutputError
from jobs.job_file import load_settings
from jobs.run import retry, score
from jobs.telling.dry_run import show_plan
from tests.conftest import LIVE_KEY, ROOT
from tests.hosted_batches import answer, ask_and_wait, hosted_spec
from tests.provider import Faults, Provider, serve_provider
from udfs import embed, generate
from udfs.factory import make_answer_udf, make_ask_udf, make_udf
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.tasks import make_hosted

WriteJob = Callable[..., Path]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serve_provider() as served:
        served.key = LIVE_KEY
        yield served


def _endpoint(provider: Provider, **more: Any) -> dict[str, Any]:
    return {"base_url": f"{provider.url}/v1", "api_key_env": "GRISTMILL_LIVE_KEY", **more}


def _job(write_job: WriteJob, provider: Provider, out: Path, files: int = 3, rows: int = 60, **score: Any) -> Path:
    source = out.parent / "rows"
    source.mkdir(exist_ok=True)
    for number in range(files):
        told = [{"id": number * rows + row, "text": f"row {row % 40}" if row % 10 else None} for row in range(rows)]
        (source / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    asked = {"task": "text-generation", "engine": "openai-compatible", "model": "m", "text": None,
             "prompt": "Say {{ text }}", "endpoint": _endpoint(provider), **score}  # fmt: skip
    return write_job(
        input={"path": str(source), "format": "json", "increment_bytes": 1, "key": ["id"]},
        output={"path": str(out)},
        score=asked,
    )


def _answers(out: Path) -> dict[int, str | None]:
    rows = ds.dataset(out, format="parquet", partitioning="hive").to_table().to_pylist()
    assert Counter(row["id"] for row in rows).most_common(1)[0][1] == 1
    return {row["id"]: row["prediction"]["text"] for row in rows}


def _holding(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.long
def test_a_job_has_every_row_once_and_the_same_answers_whatever_passes(
    spark: Any, write_job: WriteJob, tmp_path: Path, provider: Provider
) -> None:
    report = score(load_settings(_job(write_job, provider, tmp_path / "calm")))
    wanted = _answers(tmp_path / "calm")
    assert (report.rows, report.succeeded, report.failed_by_code) == (180, 162, {"empty_input": 18})
    assert sorted(wanted) == list(range(180))
    assert report.increments == 3
    assert provider.live_calls == 3 * 36 == report.scored_rows  # each text of an increment once
    assert report.output_tokens > 0
    provider.faults = Faults(seed=3, server_error=0.1, rate_limit=0.15, dropped=0.05, retry_after_s=0.05)
    stormy = score(load_settings(_job(write_job, provider, tmp_path / "storm")))
    assert stormy.status == "completed"
    assert _answers(tmp_path / "storm") == wanted
    assert _holding(tmp_path, LIVE_KEY) == []


@pytest.mark.long
def test_failed_rows_are_asked_again_by_a_retry(
    spark: Any, write_job: WriteJob, tmp_path: Path, provider: Provider
) -> None:
    provider.faults = Faults(words={"17": "bad_request"}, at_most_a_row=10**6)
    settings = load_settings(_job(write_job, provider, tmp_path / "out", files=1))
    assert score(settings).failed_by_code == {"bad_request": 2, "empty_input": 6}
    provider.faults = Faults()
    report = retry(settings, only=["bad_request"])
    assert (report.succeeded, report.failed_by_code) == (2, {})


def test_an_output_goes_on_with_other_limits_and_with_no_other_provider(
    spark: Any, write_job: WriteJob, tmp_path: Path, provider: Provider
) -> None:
    path = _job(write_job, provider, tmp_path / "out", files=1)
    score(load_settings(path))
    assert score(load_settings(path, ["score.endpoint.max_in_flight_requests=2"])).rows == 0
    for override in ("score.endpoint.base_url=http://127.0.0.1:9/v1", "score.endpoint.body={seed: 5}", "score.model=n"):
        with pytest.raises(OutputError, match=r"endpoint|model"):
            score(load_settings(path, [override]))


def test_a_dry_run_shows_requests_and_asks_nothing(
    spark: Any, write_job: WriteJob, tmp_path: Path, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    priced = _endpoint(provider, price={"input": 1, "output": 2})
    show_plan(load_settings(_job(write_job, provider, tmp_path / "out", files=1, endpoint=priced)), Console(width=150))
    told = capsys.readouterr().out
    assert '"content": "Say row 1"' in told
    assert "estimated" in told
    assert "about 54 requests" in told
    assert "answered with at most 13,824" in told  # 256 each
    assert "USD by the settings' prices" in told
    assert provider.calls == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "another"}, "knows no model 'another'"),
        ({"endpoint": {"base_url": "http://127.0.0.1:9/v1", "max_retries": 0}}, "answers no call"),
        ({"endpoint": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NOT_SET"}}, "NOT_SET is to hold the key"),
    ],
)
def test_a_world_that_is_broken_ends_a_job_with_2_and_no_row_fails(
    spark: Any, write_job: WriteJob, tmp_path: Path, provider: Provider, change: dict[str, Any], told: str
) -> None:
    provider.state.models = ("m",)
    with pytest.raises(EndpointError, match=told) as caught:
        score(load_settings(_job(write_job, provider, tmp_path / "out", files=1, **change)))
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_functions_for_notebooks_take_an_endpoint(spark: Any, provider: Provider) -> None:
    from pyspark.sql import functions as F

    at = Endpoint(engine="openai-compatible", **_endpoint(provider))
    rows = spark.createDataFrame([(1, "tea"), (2, None)], "id int, t string").coalesce(1)
    told = rows.select(generate("m", prompt="Say {{ t }}", endpoint=at)(F.struct("t")).alias("p")).collect()
    assert [row.p.error and row.p.error.code for row in told] == [None, "empty_input"]
    vectors = rows.select(embed("m", dimensions=4, endpoint=at)("t").alias("p")).collect()
    assert [row.p.embedding and len(row.p.embedding) for row in vectors] == [4, None]


@pytest.mark.parametrize("arrow", [True, False])
def test_requests_and_replies_go_through_spark(spark: Any, provider: Provider, arrow: bool) -> None:
    from pyspark.sql import functions as F

    spec = hosted_spec(provider, template="{{ t }} in {{ v }}", variants=("de", "fr"), variant_name="v")
    rows = [(number, f"row {number % 5}" if number else None) for number in range(12)]
    frame = spark.createDataFrame(rows, "id int, t string").coalesce(1)
    asked = frame.select(make_ask_udf(spec, arrow=arrow)(F.struct("t")).alias("a")).toArrow()["a"].combine_chunks()
    lines = ask_and_wait(provider, make_hosted(spec), asked)
    replies = spark.createDataFrame([(line,) for line in lines], "reply string")
    both = replies.select(F.lit(None).cast("int").alias("id"), F.lit(None).cast("string").alias("t"), "reply").union(
        frame.select("id", "t", F.lit(None).cast("string").alias("reply"))
    )
    told = both.coalesce(1).sortWithinPartitions(F.col("reply").isNull())
    struct = F.struct(F.struct("t").alias("text"), "reply")
    results = told.select("id", make_answer_udf(spec, arrow=arrow)(struct).alias("p")).where("id is not null").collect()
    wanted = answer(make_hosted(spec), frame.select(F.struct("t").alias("s")).toArrow()["s"].combine_chunks(), lines)
    assert [row.p and row.p.asDict(recursive=True) for row in results] == wanted


def test_pandas_workers_ask_live_as_well(spark: Any, provider: Provider) -> None:
    spec = hosted_spec(
        provider, engine="openai-compatible", endpoint={"api_key_env": "GRISTMILL_LIVE_KEY"}, template="{{ t }}"
    )
    from pyspark.sql import functions as F

    frame = spark.createDataFrame([("tea",), (None,), ("spade",)], "t string").coalesce(1)
    both = [
        [row.p for row in frame.select(make_udf(spec, arrow=arrow)(F.struct("t")).alias("p")).collect()]
        for arrow in (True, False)
    ]
    assert both[0] == both[1]


def _start(path: Path, folder: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.long
def test_workers_that_are_killed_cost_no_row(write_job: WriteJob, tmp_path: Path, provider: Provider) -> None:
    provider.faults = Faults(slow=1, slow_s=0.2, at_most_a_row=10**6)
    path = _job(write_job, provider, tmp_path / "out", endpoint=_endpoint(provider, max_in_flight_requests=4))
    job = _start(path, tmp_path, GRISTMILL_LIVE_KEY=LIVE_KEY)
    killed = 0
    while job.poll() is None and killed < 3:
        time.sleep(1.5)
        for process in psutil.Process(job.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "pyspark.daemon" in " ".join(process.cmdline()) and process.parent().name().startswith("python"):
                    process.kill()
                    killed += 1
                    break
    said = job.communicate(timeout=300)[1]
    assert job.returncode in (0, 1), said
    if job.returncode:  # local[2] does not try a task twice; the same command goes on
        assert _start(path, tmp_path, GRISTMILL_LIVE_KEY=LIVE_KEY).communicate(timeout=300)
    answers = _answers(tmp_path / "out")
    assert sorted(answers) == list(range(180))
    assert sum(text is not None for text in answers.values()) == 162


@pytest.mark.cluster
@pytest.mark.long
def test_a_key_that_is_not_taken_ends_a_command_with_2_and_is_nowhere(
    write_job: WriteJob, tmp_path: Path, provider: Provider
) -> None:
    wrong = "sk-wrong-0a1b2c3d4e5f"
    job = _start(_job(write_job, provider, tmp_path / "out"), tmp_path, GRISTMILL_LIVE_KEY=wrong, TMPDIR=str(tmp_path))
    out, said = job.communicate(timeout=300)
    assert job.returncode == 2, said
    assert "does not take the key in GRISTMILL_LIVE_KEY" in said
    assert wrong not in out + said
    assert _holding(tmp_path, wrong) == []
