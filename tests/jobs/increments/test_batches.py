"""Jobs whose answers come by a provider's batches, in this process, on the session's Spark."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.errors import EndpointError, OutputError
from jobs.job_file import load_settings
from jobs.run import cancel, retry, score
from jobs.settings import Settings
from jobs.telling.dry_run import show_plan
from jobs.telling.report import summary_table
from tests.conftest import ROOT
from tests.provider import Faults, Pace, Provider, serve_provider

pytestmark = pytest.mark.long
KEY = "GRISTMILL_TEST_KEY"
PRICE = {"input": 2.0, "output": 8.0, "cached_input": 1.0, "as_of": "2026-11-27"}
MakeJob = Callable[..., Settings]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with serve_provider(pace=Pace(polls=1)) as served:
        monkeypatch.setenv(KEY, served.key)
        yield served


@pytest.fixture
def make_job(provider: Provider, write_job: Callable[..., Path], tmp_path: Path) -> MakeJob:
    """A job on rows in files, each of which is an increment; some rows are alike, some have no title."""

    def make(engine: str = "openai-batch", *, files: int = 2, rows: int = 30, **sections: dict[str, Any]) -> Settings:
        (tmp_path / "in").mkdir(exist_ok=True)
        for number in range(files):
            titles = [f"thing {number} {row // 2}" for row in range(rows - 1)]
            told = [
                {"id": number * 1000 + row, "title": title, "more": {"a": [row]}} for row, title in enumerate(titles)
            ]
            told.append({"id": number * 1000 + rows - 1, "title": None, "more": None})
            (tmp_path / f"in/part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        url = provider.url if engine == "anthropic-batch" else f"{provider.url}/v1"
        endpoint = {"base_url": url, "api_key_env": KEY, "poll_s": 0.02, "price": PRICE}
        score = {"task": "text-generation", "engine": engine, "model": "writer", "max_new_tokens": 40, "text": None}
        given = sections.pop("score", {})
        job: dict[str, dict[str, Any]] = {
            "input": {"path": str(tmp_path / "in"), "increment_bytes": 1, "key": ["id"]},
            "score": {**score, "prompt": "{{ title }}", **given, "endpoint": endpoint | given.get("endpoint", {})},
        }
        for name, values in sections.items():
            job[name] = {**job.get(name, {}), **values}
        return load_settings(write_job(**job))

    return make


def rows_of(spark: Any, settings: Settings) -> list[Any]:
    return spark.read.parquet(settings.output.path).collect()  # type: ignore[no-any-return]


def ledgers(settings: Settings) -> list[Path]:
    return sorted(Path(settings.output.path, "_gristmill/requests").glob("*"))


@pytest.mark.parametrize("engine", ["openai-batch", "anthropic-batch"])
def test_each_row_comes_back_once_and_identical_ones_are_asked_once(
    spark: Any, make_job: MakeJob, provider: Provider, engine: str
) -> None:
    settings = make_job(engine)
    report = score(settings)
    rows = rows_of(spark, settings)
    assert Counter(row["id"] for row in rows) == Counter(n * 1000 + row for n in range(2) for row in range(30))
    assert (report.succeeded, report.failed_by_code, report.increments) == (58, {"empty_input": 2}, 2)
    assert (provider.asked, provider.distinct, provider.asked_twice) == (30, 30, 0)
    texts = {}
    for row in rows:
        if row["title"]:
            assert row["prediction"]["text"] == texts.setdefault(row["title"], row["prediction"]["text"])
    assert len(set(texts.values())) > 25
    assert all(row["more"] is None or row["more"]["a"] == [row["id"] % 1000] for row in rows)
    assert ledgers(settings) == []


def test_money_is_told_by_the_prices_of_the_job_and_the_tokens_of_the_provider(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    settings = make_job(files=1)
    report = score(settings)
    read, written = report.input_tokens, report.output_tokens
    (batch,) = provider.state.batches.values()
    assert (read, written) == (batch.usage["input"], batch.usage["output"])
    assert report.provider_usd == pytest.approx((read * 2.0 + written * 8.0) / 2 / 1e6, abs=1e-6)
    assert report.live_usd == pytest.approx(2 * report.provider_usd, abs=2e-6)
    assert report.saved_by_dedupe_usd == pytest.approx(report.provider_usd * 14 / 15, rel=0.02, abs=2e-6)
    assert report.prices_of == "2026-11-27"
    assert report.batches_run == 1


def test_variants_and_failures_of_single_requests_are_rows_and_a_retry_asks_them_alone(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    provider.faults = Faults(seed=3, errored=0.15, missing=0.1, malformed=0.1, refusal=0.1, at_most_a_row=1)
    settings = make_job(
        files=1, score={"prompt": "{{ title }} in {{ language }}", "variants": {"language": ["de", "fr"]}}
    )
    first = score(settings)
    assert set(first.failed_by_code) > {"empty_input", "provider_error"}
    asked = provider.asked
    second = retry(settings)
    assert second.succeeded + second.failed == first.failed
    assert second.failed_by_code.get("empty_input") == 1
    assert 0 < provider.asked - asked < asked
    rows = [row for row in rows_of(spark, settings) if row["outcome"] == "succeeded"]
    assert all(set(row["prediction"]["texts"]) == {"de", "fr"} for row in rows)
    assert ledgers(settings) == []


def test_a_wrong_key_ends_the_job_and_says_where_it_is_told(
    spark: Any, make_job: MakeJob, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_job(files=1)
    monkeypatch.setenv(KEY, "sk-wrong")
    with pytest.raises(EndpointError, match=KEY) as caught:
        score(settings)
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.setenv(KEY, provider.key)
    assert score(settings).rows == 30
    assert provider.asked == provider.distinct


def test_a_deadline_cancels_what_flies_and_keeps_what_was_answered(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    provider.pace = Pace(polls=10_000)
    settings = make_job(files=2, limits={"deadline": "15s"})
    report = score(settings)
    assert report.status == "expired"
    assert (report.rows, report.left["files"]) == (30, 1)
    assert set(report.failed_by_code) == {"empty_input", "expired"}
    assert ledgers(settings) == []
    assert {batch.ended for batch in provider.state.batches.values()} == {"cancelled"}
    provider.pace = Pace()
    settings = make_job(files=2)
    assert score(settings).rows == 30
    assert retry(settings, only=["expired"]).succeeded == report.failed_by_code["expired"]


def test_a_limit_on_money_holds_batches_back_and_a_higher_one_goes_on(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    held = {"endpoint": {"max_in_flight_tokens": 40}}
    settings = make_job(files=1, limits={"max_usd": 0.0004}, score=held)
    report = score(settings)
    assert report.status == "expired"
    assert "limits.max_usd" in str(report.error)
    assert 0 < report.provider_usd <= 0.0004  # type: ignore[operator]
    assert 0 < provider.asked < 15
    settings = make_job(files=1, limits={"max_usd": 1}, score=held)
    second = retry(settings, only=["expired"])
    assert second.failed == 0
    assert (provider.asked, provider.distinct) == (15, 15)


def test_a_job_that_cannot_pay_its_first_batch_commits_nothing(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    settings = make_job(files=1, limits={"max_usd": 0.00001})
    report = score(settings)
    assert (report.status, report.rows, provider.batches) == ("expired", 0, 0)
    settings = make_job(files=1, limits={"max_usd": 1})
    assert score(settings).rows == 30


def test_an_output_with_batches_in_flight_is_not_started_afresh_until_they_are_cancelled(
    spark: Any, make_job: MakeJob, provider: Provider, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    provider.pace = Pace(polls=10_000)
    settings = make_job(files=1)

    def end(*_: Any) -> None:
        raise EndpointError("ended by the test")

    with monkeypatch.context() as patched:
        patched.setattr("jobs.hosted.flight.Flight._wait", end)
        with pytest.raises(EndpointError):
            score(settings)
    with pytest.raises(OutputError, match="--cancel"):
        score(settings, overwrite=True)
    cancel(settings)
    (batch,) = provider.state.batches.values()
    assert batch.id in capsys.readouterr().err.replace("\n", "")
    assert batch.cancelled
    report = score(settings)
    assert set(report.failed_by_code) <= {"empty_input", "canceled"}
    assert provider.batches == 1


def test_a_retry_asks_again_what_was_cancelled_in_the_one_before(
    spark: Any, make_job: MakeJob, provider: Provider
) -> None:
    provider.faults = Faults(words={"thing": "canceled"})
    settings = make_job(files=1, limits={"max_error_rate": 1.0})
    assert score(settings).failed_by_code == {"canceled": 29, "empty_input": 1}
    assert retry(settings).failed_by_code == {"canceled": 29, "empty_input": 1}
    provider.faults = Faults()
    assert (retry(settings).succeeded, retry(settings).rows) == (29, 0)


def test_posts_in_four_languages_from_one_row_cost_half(
    spark: Any, provider: Provider, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"input.path={ROOT}/conf/samples/product_news.jsonl", f"output.path={tmp_path}/out"]
    asked = [f"score.endpoint.base_url={provider.url}/v1", f"score.endpoint.api_key_env={KEY}"]
    settings = load_settings(ROOT / "conf/posts_by_batch_api.yaml", [*places, *asked, "score.endpoint.poll_s=0.02"])
    show_plan(settings, Console(file=sys.stderr, width=300))
    told = capsys.readouterr().err
    assert "about 80 requests" in told
    assert "1 batches or more" in told
    assert provider.calls == {}
    report = score(settings)
    assert (report.rows, report.succeeded, provider.asked) == (20, 20, 80)
    languages = {"German", "French", "Spanish", "Italian"}
    assert all(set(row["prediction"]["texts"]) == languages for row in rows_of(spark, settings))
    assert report.provider_usd == pytest.approx(report.live_usd / 2, abs=1e-6)  # type: ignore[operator]
    assert report.prices_of == "2025-06-01"
    shown = Console(file=sys.stderr, width=200)
    shown.print(summary_table(report))
    assert "without the discount of batches" in capsys.readouterr().err
