"""A provider that is asked live: order, repetitions, limits, and worlds that are broken."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from tests.hosted_batches import KEY, hosted_spec
from tests.provider import Faults, Limits, Provider, openai_dialect, serve_provider, serve_recorder
from tests.provider.calls import Refusal
from udfs.errors import ProviderError, SpecError
from udfs.hosted import calling
from udfs.hosted.clients import cause_of, make_client
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.live import score_live
from udfs.hosted.pacing import Pace, read_retry_after

ROWS = pa.array(["kettle", "", None, "spade", "kettle"])


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with serve_provider() as served:
        monkeypatch.setenv(KEY, served.key)
        monkeypatch.setattr(calling, "FIRST_WAIT_S", 0.01)
        yield served


def _score(provider: Provider, rows: pa.Array, task: str = "text-generation", **options: Any) -> list[Any]:
    spec = hosted_spec(provider, task, engine="openai-compatible", **options)
    return [row for batch in score_live([rows], spec) for row in batch.to_pylist(maps_as_pydicts="strict")]


def _codes(results: list[Any]) -> list[str | None]:
    return [result["error"] and result["error"]["code"] for result in results]


def test_rows_keep_their_order_and_identical_ones_are_asked_once(provider: Provider) -> None:
    results = _score(provider, ROWS)
    assert _codes(results) == [None, "empty_input", "empty_input", None, None]
    assert results[0]["text"] == results[4]["text"] != results[3]["text"]
    assert [row["usage"]["output_tokens"] > 0 for row in results] == [True, False, False, True, False]
    assert provider.live_calls == 2


def test_a_provider_that_wants_no_call_for_hours_ends_the_job_or_is_waited_for_until_the_deadline(
    provider: Provider,
) -> None:
    provider.faults = Faults(rate_limit=1.0, retry_after_s=86_400.0)
    rows = pa.array([f"row {number}" for number in range(10)])
    with pytest.raises(ProviderError, match="no call for 24 hours"):
        _score(provider, rows, endpoint={"max_in_flight_requests": 2})
    told = _score(provider, rows, endpoint={"max_in_flight_requests": 2}, deadline=time.time() + 0.5)
    assert _codes(told) == ["expired"] * 10


def test_windows_of_any_size_give_the_same(provider: Provider) -> None:
    rows = pa.array([f"row {number}" for number in range(40)])
    told = [[row["text"] for row in _score(provider, rows, window_rows=size)] for size in (1, 7, 100)]
    assert told[0] == told[1] == told[2]
    assert len(set(told[0])) > 30


@pytest.mark.parametrize(
    ("task", "options", "field"),
    [
        ("feature-extraction", {"dimensions": 4}, "embedding"),
        ("text-generation", {"choices": ("x", "y")}, "text"),
        ("zero-shot-classification", {"labels": ("x", "y")}, "label"),
        ("translation", {"target_lang": ("de", "fr")}, "texts"),
    ],
)
def test_tasks_are_asked_live_as_well(provider: Provider, task: str, options: dict[str, Any], field: str) -> None:
    results = _score(provider, ROWS, task, **options)
    assert [bool(row[field]) for row in results] == [True, False, False, True, True]


@pytest.mark.parametrize("seed", range(3))
def test_what_passes_changes_no_answer(provider: Provider, seed: int) -> None:
    rows = pa.array([f"row {number}" for number in range(60)])
    wanted = _score(provider, rows)
    provider.faults = Faults(
        seed=seed, server_error=0.2, rate_limit=0.2, conflict=0.1, dropped=0.1, lost_reply=0.1, retry_after_s=0.02
    )
    assert _score(provider, rows, endpoint={"max_retries": 20}) == wanted


def test_a_row_s_own_failure_is_its_own(provider: Provider) -> None:
    words = {name: name for name in ("bad_request", "context_overflow", "refusal", "content_filter")}
    provider.faults = Faults(words=words, at_most_a_row=99)
    rows = pa.array(["tea", *(f"a word of {name}" for name in words), "coffee"])
    wanted = [None, "bad_request", "input_too_long", "refused", "content_filter", None]
    assert _codes(_score(provider, rows)) == wanted


def test_a_request_that_always_fails_is_a_row_and_others_go_on(provider: Provider) -> None:
    provider.faults = Faults(words={"trouble": "errored"}, at_most_a_row=99)
    rows = pa.array(["trouble"] + [f"row {number}" for number in range(20)])
    results = _score(provider, rows, endpoint={"max_retries": 1, "max_in_flight_requests": 2})
    assert _codes(results) == ["provider_error"] + [None] * 20


def test_no_more_run_at_once_than_are_allowed(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, lock, inside, most = threading.Barrier(4), threading.Lock(), 0, 0
    answer = openai_dialect.answer

    def meet(*given: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        meeting.wait(10)  # four have to be here at once for any of them to go on
        with lock:
            inside -= 1
        return answer(*given)

    monkeypatch.setattr(openai_dialect, "answer", meet)
    results = _score(
        provider, pa.array([f"row {number}" for number in range(12)]), endpoint={"max_in_flight_requests": 4}
    )
    assert _codes(results) == [None] * 12
    assert most == 4


def test_a_share_of_several_workers_is_a_part_of_the_whole() -> None:
    endpoint = Endpoint(engine="openai-compatible", base_url="http://127.0.0.1:9", max_in_flight_requests=10)
    spec = hosted_spec(engine="openai-compatible", endpoint={"max_in_flight_requests": 10, "api_key_env": None})
    assert endpoint.share(4).workers == 4
    from dataclasses import replace

    from udfs.hosted.tasks import make_hosted

    caller = calling.Caller(make_hosted(replace(spec, endpoint=spec.endpoint.share(4))))
    assert caller.at_once == 2


def test_limits_of_a_minute_are_kept_so_that_nothing_is_refused(provider: Provider) -> None:
    provider.limits = Limits(live_requests=5, live_window_s=0.5)
    rows = pa.array([f"row {number}" for number in range(12)])
    assert _codes(_score(provider, rows, endpoint={"requests_per_minute": 500})) == [None] * 12
    assert provider.refused_live == 0


@pytest.mark.parametrize(
    ("faults", "told"),
    [(Faults(no_money=1), "no money"), (Faults(forbidden=1), "does not let this key use model 'gpt-test'")],
)
def test_no_money_and_no_right_end_the_job(provider: Provider, faults: Faults, told: str) -> None:
    provider.faults = faults
    with pytest.raises(ProviderError, match=told):
        _score(provider, ROWS)


def test_a_wrong_key_ends_the_job_and_is_not_told(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-wrong-1234567890")
    with pytest.raises(ProviderError, match=f"does not take the key in {KEY}") as caught:
        _score(provider, ROWS)
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.delenv(KEY)
    with pytest.raises(ProviderError, match=f"{KEY} is to hold the key"):
        _score(provider, ROWS)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_what_a_provider_quotes_of_the_key_or_the_row_is_told_nowhere(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def quote(*_: Any) -> None:
        raise Refusal(status, f"{provider.key} asked for kettle", code=provider.key)

    monkeypatch.setattr(openai_dialect, "_live", quote)
    try:
        told = str(_score(provider, ROWS, endpoint={"max_retries": 0}))
    except ProviderError:
        told = traceback.format_exc()
    assert f"HTTP {status}" in told
    assert provider.key not in told
    assert "kettle" not in told


def test_an_unknown_model_ends_the_job(provider: Provider) -> None:
    provider.state.models = ("another",)
    with pytest.raises(ProviderError, match="knows no model 'gpt-test'"):
        _score(provider, ROWS)


def test_a_provider_that_is_not_there_ends_the_job(provider: Provider) -> None:
    nowhere = {"base_url": "http://127.0.0.1:9/v1", "max_retries": 2}
    with pytest.raises(ProviderError, match="answers no call"):
        _score(provider, ROWS, endpoint=nowhere)


def test_a_provider_that_goes_down_on_the_way_ends_the_job(provider: Provider) -> None:
    provider.faults = Faults(server_error=1, at_most_a_row=10**6)
    with pytest.raises(ProviderError, match="answers no call"):
        _score(provider, pa.array([f"row {number}" for number in range(50)]), endpoint={"max_retries": 1})


def test_a_redirect_is_not_followed_with_the_key(provider: Provider) -> None:
    with serve_recorder() as recorder:
        provider.redirect_to = recorder.url
        with pytest.raises(ProviderError, match="another address"):
            _score(provider, ROWS)
        assert recorder.calls == []


def test_no_proxy_of_the_environment_hears_a_key_without_tls(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_recorder() as recorder:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, recorder.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert _codes(_score(provider, pa.array(["tea"]))) == [None]
        assert recorder.calls == []


def test_no_address_that_a_provider_names_is_called_with_the_key(provider: Provider) -> None:
    import anthropic

    with serve_recorder() as recorder:
        endpoint = Endpoint(engine="anthropic-batch", base_url=provider.url, api_key_env=KEY)
        client = make_client(endpoint, provider.key)
        requests: Any = [
            {
                "custom_id": "a",
                "params": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
            }
        ]
        provider.results_base = recorder.url
        batch = client.messages.batches.create(requests=requests)
        with pytest.raises(anthropic.APIConnectionError) as caught:
            client.messages.batches.results(batch.id)
        assert "another place" in str(cause_of(caught.value))
        assert recorder.calls == []


def test_rows_that_the_deadline_leaves_over_are_expired(provider: Provider) -> None:
    provider.faults = Faults(slow=1, slow_s=0.4, at_most_a_row=10**6)
    rows = pa.array([f"row {number}" for number in range(12)])
    began = time.monotonic()
    results = _score(provider, rows, deadline=time.time() + 1.0, endpoint={"max_in_flight_requests": 2})
    assert time.monotonic() - began < 5
    assert {*_codes(results)} <= {None, "expired"}
    assert _codes(results)[-1] == "expired"


def test_a_wait_beyond_the_deadline_is_not_waited_for(provider: Provider) -> None:
    provider.faults = Faults(rate_limit=1, retry_after_s=3600, at_most_a_row=10**6)
    began = time.monotonic()
    assert _codes(_score(provider, pa.array(["tea"]), deadline=time.time() + 0.5)) == ["expired"]
    assert time.monotonic() - began < 5


def test_a_batch_engine_is_no_udf(provider: Provider) -> None:
    with pytest.raises(SpecError, match="take a job"):
        next(score_live([ROWS], hosted_spec(provider)))


def test_a_pace_lets_one_begin_after_the_other() -> None:
    now = itertools.count(0, 0)
    pace = Pace(60, None, clock=lambda: float(next(now)))
    assert [pace.reserve(10) for _ in range(3)] == [0.0, 1.0, 2.0]
    tokens = Pace(None, 600, clock=lambda: 0.0)
    assert [tokens.reserve(size) for size in (20, 5, 1)] == [0.0, 2.0, 2.5]
    half = Pace(60, None, share=0.5, clock=lambda: 0.0)
    assert [half.reserve(1) for _ in range(2)] == [0.0, 2.0]
    half.pause(10)
    assert half.reserve(1) == 10.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_told_in_several_ways(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers) == seconds
