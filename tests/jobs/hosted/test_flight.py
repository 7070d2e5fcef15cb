"""Batches on their way to the provider of the tests, through the official clients, without Spark."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BusyError, DeadlineReached, EndpointError
from jobs.folder import Folder
from jobs.hosted import patience
from jobs.hosted.flight import Flight, Standing, Tempo, cancel_flight
from jobs.hosted.ledger import Ledger
from jobs.hosted.money import Purse, price_of
from jobs.hosted.provider import LostReplyError
from tests.jobs.hosted.flying import ENGINES, fly, make_body, open_at, read_replies, write_asked
from tests.provider import Faults, Limits, Pace, Provider, anthropic_dialect, openai_dialect, serve_provider
from tests.provider import state as state_of_provider
from tests.provider.calls import Refusal
from udfs.hosted.endpoint import Price

each_engine = pytest.mark.parametrize("engine", ENGINES)
SMALL = Tempo(max_batches=3, max_tokens=400, poll_s=0.01, listed_s=0.2)  # ten requests a batch


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serve_provider(pace=Pace(polls=1)) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


def ask(folder: Folder, engine: str, count: int = 40, **more: Any) -> Ledger:
    return write_asked(folder, [make_body(engine, number, **more) for number in range(count)])


def outcomes(replies: dict[str, Any]) -> Counter[str]:
    """How requests ended, in either dialect."""
    found = Counter[str]()
    for reply in replies.values():
        if "result" in reply:
            found[reply["result"]["type"]] += 1
        elif reply["error"]:
            found[reply["error"]["code"]] += 1
        else:
            found[str(reply["response"]["status_code"])] += 1
    return found


@each_engine
def test_each_request_is_answered_once(engine: str, provider: Provider, folder: Folder) -> None:
    ledger = ask(folder, engine)
    landed = fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40
    assert (provider.asked, provider.distinct, provider.batches, landed.batches) == (40, 40, 4, 4)
    assert landed.usage.input_tokens == 80  # by words


@each_engine
def test_no_requests_are_no_batches(engine: str, provider: Provider, folder: Folder) -> None:
    ledger = write_asked(folder, [])
    assert fly(ledger, open_at(provider.url, provider.key, engine)).batches == 0
    assert provider.calls == {}


@each_engine
def test_a_reply_that_is_lost_makes_no_second_batch(engine: str, provider: Provider, folder: Folder) -> None:
    provider.faults = Faults(seed=1, lost_reply=0.5, listed_after_s=0.1)
    ledger = ask(folder, engine)
    fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40
    assert (provider.asked, provider.asked_twice) == (40, 0)


def test_a_lost_batch_whose_results_begin_with_others_or_come_short_is_known_again(
    provider: Provider, folder: Folder
) -> None:
    provider.faults = Faults(
        seed=1, lost_reply=0.9, at_most_a_row=1, foreign_lines=1.0, short_download=0.6, malformed=0.3
    )
    ledger = ask(folder, "anthropic-batch")
    fly(ledger, open_at(provider.url, provider.key, "anthropic-batch"), tempo=SMALL)
    assert provider.state.failures["malformed"]
    assert (provider.asked, provider.asked_twice) == (40, 0)


@each_engine
def test_a_list_that_comes_late_is_not_the_word_that_a_batch_was_not_made(
    engine: str, provider: Provider, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the driver, or its machine, stood still between the list and its look at the clock."""
    provider.faults = Faults(seed=1, lost_reply=0.9, at_most_a_row=1, listed_after_s=0.15)
    client, ledger = open_at(provider.url, provider.key, engine), ask(folder, engine)
    find, calls = client.find, [0]

    def find_and_stand_still(*args: Any) -> Any:
        found, calls[0] = find(*args), calls[0] + 1
        time.sleep(calls[0] == 2)  # longer than a batch may be unlisted, by `SMALL`
        return found

    monkeypatch.setattr(client, "find", find_and_stand_still)
    fly(ledger, client, tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40
    assert (provider.asked, provider.asked_twice) == (40, 0)


@each_engine
def test_requests_that_are_refused_are_found_by_halves_and_fail_alone(
    engine: str, provider: Provider, folder: Folder
) -> None:
    provider.faults = Faults(words={"17": "rejected", "31": "rejected"})
    ledger = ask(folder, engine)
    fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    found = outcomes(read_replies(folder, ledger))
    assert found == ({"200": 38, "400": 2} if engine == "openai-batch" else {"succeeded": 38, "errored": 2})
    assert provider.asked == provider.distinct == 38


def test_what_is_too_much_at_once_is_sent_later_or_in_halves(provider: Provider, folder: Folder) -> None:
    provider.limits = Limits(enqueued_tokens=25)  # words: ten requests are twenty
    ledger = ask(folder, "openai-batch")
    fly(ledger, open_at(provider.url, provider.key, "openai-batch"), tempo=Tempo(3, 1600, 0.01, 0.2))
    assert outcomes(read_replies(folder, ledger)) == {"200": 40}
    assert provider.asked == 40


@each_engine
def test_a_download_that_breaks_off_is_made_again(engine: str, provider: Provider, folder: Folder) -> None:
    provider.faults = Faults(seed=2, truncated_download=0.5, short_download=0.3)
    ledger = ask(folder, engine)
    fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40


@each_engine
def test_lines_that_are_missing_malformed_or_foreign_are_nobodys(
    engine: str, provider: Provider, folder: Folder
) -> None:
    provider.faults = Faults(seed=5, missing=0.1, malformed=0.1, repeated=0.2, foreign_lines=0.9)
    ledger = ask(folder, engine)
    fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    replies = read_replies(folder, ledger)  # none has two
    assert 20 < len(replies) < 40
    assert provider.asked == 40


@each_engine
def test_at_the_deadline_batches_are_cancelled_and_what_is_left_expires(
    engine: str, provider: Provider, folder: Folder
) -> None:
    provider.pace = Pace(polls=4)
    ledger = ask(folder, engine)
    ends = list[float]()

    def slow_down(_: Any) -> None:
        if provider.batches >= 3 and not ends:
            provider.pace = Pace(polls=10_000)
            ends.append(time.monotonic() + 0.3)

    landed = fly(
        ledger,
        open_at(provider.url, provider.key, engine),
        tempo=SMALL,
        left_s=lambda: ends[0] - time.monotonic() if ends else None,
        tell=slow_down,
    )
    found = outcomes(read_replies(folder, ledger))
    assert set(found) <= {"200", "batch_expired", "succeeded", "expired"}
    assert found["batch_expired"] + found["expired"] >= 10
    assert found.total() == 40
    assert landed.unsent == 40 - provider.asked
    assert all(batch.ended for batch in provider.state.batches.values())


@each_engine
def test_a_provider_that_is_silent_at_the_deadline_is_left_to_the_next_run(
    engine: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_LATE_PATIENCE_S", 0.1)
    with serve_provider(pace=Pace(polls=10_000)) as provider:
        ledger, told = ask(folder, engine), open_at(provider.url, provider.key, engine)
        late, ends = [False], time.monotonic() + 60

        def hang_up(standing: Standing) -> None:
            if standing.in_flight == 3 and not late[0]:
                late[0] = True
                provider.stop()

        def check() -> None:
            assert time.monotonic() < ends

        with pytest.raises(DeadlineReached, match="does not answer"):
            fly(ledger, told, tempo=SMALL, left_s=lambda: 0.0 if late[0] else 1.0, tell=hang_up, check=check)
        provider.start()
        provider.pace = Pace()
        fly(ledger, told, tempo=SMALL)
        assert len(read_replies(folder, ledger)) == 40
        assert provider.asked_twice == 0


@each_engine
def test_calls_that_fail_now_and_then_after_the_deadline_lose_no_answer(
    engine: str, provider: Provider, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_LATE_PATIENCE_S", 1.0)
    provider.pace = Pace(polls=10_000)
    ledger, late = ask(folder, engine), [0.0]

    def go_on(standing: Standing) -> None:
        if standing.in_flight == 3 and not late[0]:
            late[0] = time.monotonic()
        if late[0] and time.monotonic() - late[0] > 1.5 and not provider.faults.rate_limit:
            provider.faults = Faults(seed=1, rate_limit=0.3, server_error=0.3, at_most_a_row=1)
            provider.pace = Pace()

    monkeypatch.setattr("tests.provider.running.cancel", lambda *_: None)  # it takes its time
    landed = fly(
        ledger,
        open_at(provider.url, provider.key, engine),
        tempo=SMALL,
        left_s=lambda: 0.0 if late[0] else 1.0,
        tell=go_on,
    )
    assert len(read_replies(folder, ledger)) == 40
    assert (landed.batches, landed.unsent) == (3, 10)


def test_a_limit_on_money_is_not_passed(provider: Provider, folder: Folder) -> None:
    price = Price(input=1, output=10)
    ledger = ask(folder, "openai-batch")
    purse = Purse(price, max_usd=0.0022, spent_usd=0.001)  # a batch of ten: at most 0.00255
    landed = fly(ledger, open_at(provider.url, provider.key, "openai-batch"), tempo=SMALL, purse=purse)
    spent = 0.001 + price_of(landed.usage, price, in_batches=True)
    assert "limits.max_usd" in str(landed.spent_out)
    assert 0.001 < spent <= 0.0022
    assert 0 < landed.unsent == 40 - provider.asked


def test_two_lost_batches_of_one_size_are_each_known_again(provider: Provider, folder: Folder) -> None:
    """Both have ended by the time that a run looks for them; each looks like the other until it is read."""
    ledger, client = ask(folder, "anthropic-batch"), open_at(provider.url, provider.key, "anthropic-batch")
    submit = client.submit

    def submit_and_lose(*args: Any) -> str:
        made = submit(*args)
        raise LostReplyError(made) if provider.batches <= 2 else KeyboardInterrupt

    client.submit = submit_and_lose  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        _fly_without_settling(ledger, client)
    assert provider.batches == 3
    fly(ledger, open_at(provider.url, provider.key, "anthropic-batch"), tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40
    assert (provider.asked, provider.asked_twice) == (40, 0)


def _fly_without_settling(ledger: Ledger, client: Any) -> None:
    """As drivers that are killed one after the other, each as it makes a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "_settle", lambda *_: None)
        patch.setattr(Flight, "_is_unsettled", lambda *_: False)
        fly(ledger, client, tempo=SMALL)


@each_engine
def test_a_clock_that_is_days_off_pays_nothing_twice(
    engine: str, provider: Provider, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.faults = Faults(seed=1, lost_reply=0.9, at_most_a_row=1, listed_after_s=-1e6)
    monkeypatch.setattr(state_of_provider.time, "time", lambda: time.monotonic())  # in 1970
    ledger = ask(folder, engine)
    fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
    assert (provider.asked, provider.asked_twice) == (40, 0)


@each_engine
def test_a_download_that_never_comes_holds_up_no_other_batch(engine: str, provider: Provider, folder: Folder) -> None:
    ledger, client = ask(folder, engine), open_at(provider.url, provider.key, engine)
    download, first, left = client.download, list[str](), [30]

    def fail_for_the_first(file: str, to: Path) -> Any:
        first[:] = first or [file]
        left[0] -= file == first[0]
        if file == first[0] and (left[0] > 0 or _collected(ledger) < 3):
            raise LostReplyError("a download broke off")
        return download(file, to)

    client.download = fail_for_the_first  # type: ignore[method-assign]
    fly(ledger, client, tempo=SMALL)
    assert left[0] <= 0
    assert len(read_replies(folder, ledger)) == 40


def _collected(ledger: Ledger) -> int:
    return sum(batch.usage is not None for batch in ledger.batches())


def test_a_file_that_is_gone_takes_no_other_with_it(provider: Provider, folder: Folder) -> None:
    provider.faults = Faults(seed=3, bad_request=0.5, expired=1.0)
    ledger, client = ask(folder, "openai-batch"), open_at(provider.url, provider.key, "openai-batch")
    look = client.look

    def name_another(batch_id: str) -> Any:
        seen = look(batch_id)
        return replace(seen, files=("file-gone", *seen.files)) if seen.files else seen

    client.look = name_another  # type: ignore[method-assign]
    fly(ledger, client, tempo=SMALL)
    found = outcomes(read_replies(folder, ledger))
    assert found["200"] > 5
    assert found["batch_expired"] > 1
    assert found.total() == 40


@each_engine
def test_replies_that_come_late_take_the_place_of_none(engine: str, provider: Provider, folder: Folder) -> None:
    """A driver is killed as it has noted that some are not answered, and they come."""
    ledger, client = ask(folder, engine, count=10), open_at(provider.url, provider.key, engine)
    provider.faults = Faults(seed=2, short_download=1.0, at_most_a_row=4, expired=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "keep_collected", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fly(ledger, client, tempo=SMALL)
    fly(ledger, client, tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 10  # none has two


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_batch_that_was_not_run_for_want_of_money_is_sent_again_once_there_is_some(
    provider: Provider, folder: Folder
) -> None:
    provider.faults = Faults(no_money_left=1.0)
    ledger, client = ask(folder, "openai-batch"), open_at(provider.url, provider.key, "openai-batch")
    with pytest.raises(EndpointError, match="no money"):
        fly(ledger, client, tempo=SMALL)
    provider.faults = Faults()
    fly(ledger, client, tempo=SMALL)
    assert outcomes(read_replies(folder, ledger)) == {"200": 40}
    assert provider.asked_twice == 0


@each_engine
def test_a_model_that_is_there_by_the_next_run_answers_each_request_once(engine: str, folder: Folder) -> None:
    ledger = ask(folder, engine)
    with serve_provider(pace=Pace(polls=1)) as provider:
        client = open_at(provider.url, provider.key, engine)
        taken = client.tells_no_model
        client.tells_no_model = lambda reply: True  # type: ignore[method-assign]
        with pytest.raises(EndpointError, match=r"score\.model"):
            fly(ledger, client, tempo=SMALL)
        client.tells_no_model = taken  # type: ignore[method-assign]
        fly(ledger, client, tempo=SMALL)
    assert len(read_replies(folder, ledger)) == 40  # none has two


@each_engine
def test_what_the_provider_does_not_know_any_more_can_be_cancelled(
    engine: str, provider: Provider, folder: Folder
) -> None:
    ledger, client = leave_in_flight(engine, provider, folder)
    first = ledger.batches()[0].id
    del provider.state.batches[str(first)]
    with pytest.raises(EndpointError, match="--cancel and then --overwrite"):
        fly(ledger, client, tempo=SMALL)
    told = [became for _, became in cancel_flight(ledger, client)]
    assert "is not known to the provider any more" in told
    assert len(told) > 1
    assert all(batch.cancelled for batch in ledger.batches())


@each_engine
def test_a_page_in_the_place_of_a_reply_is_a_reply_that_is_lost(
    engine: str, provider: Provider, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, pages = open_at(provider.url, provider.key, engine), [3]
    send = client._client._client.send  # type: ignore[attr-defined]

    def send_page(request: Any, **options: Any) -> Any:
        reply = send(request, **options)
        if request.method == "GET" and pages[0] > 0 and not options.get("stream"):
            pages[0] -= 1
            return type(reply)(200, html="<html>Sign in</html>", request=request)
        return reply

    monkeypatch.setattr(client._client._client, "send", send_page)  # type: ignore[attr-defined]
    ledger = ask(folder, engine)
    fly(ledger, client, tempo=SMALL)
    assert pages[0] < 3
    assert len(read_replies(folder, ledger)) == 40


@each_engine
@pytest.mark.parametrize("max_usd", [0.0006, 0.003, 0.0095])  # a batch of ten: at most 0.00255
def test_a_batch_that_there_is_no_money_for_is_made_smaller(
    engine: str, max_usd: float, provider: Provider, folder: Folder
) -> None:
    price, ledger = Price(input=1, output=10), ask(folder, engine)
    client = open_at(provider.url, provider.key, engine)
    landed = fly(ledger, client, tempo=SMALL, purse=Purse(price, max_usd=max_usd))
    spent = price_of(landed.usage, price, in_batches=True)
    assert 0 < spent <= max_usd
    assert landed.unsent == 40 - provider.asked
    assert provider.asked == 40 or "limits.max_usd" in str(landed.spent_out)
    assert len(read_replies(folder, ledger)) == 40  # those that were not sent expire
    fly(ledger, client, tempo=SMALL)
    assert (provider.asked, provider.asked_twice) == (40, 0)


def test_requests_of_no_tokens_are_not_made_smaller_for_ever(provider: Provider, folder: Folder) -> None:
    bodies = [make_body("openai-batch", number) for number in range(20)]
    ledger = write_asked(folder, bodies, tokens=0)
    purse = Purse(Price(input=1, output=10), max_usd=0.0001, spent_usd=0.01)
    with pytest.raises(DeadlineReached, match="max_usd"):
        fly(ledger, open_at(provider.url, provider.key, "openai-batch"), purse=purse)
    assert provider.asked == 0


def test_no_money_for_a_single_request_leaves_all_to_the_next_run(provider: Provider, folder: Folder) -> None:
    ledger = ask(folder, "openai-batch")
    purse = Purse(Price(input=1, output=10), max_usd=0.0001)
    with pytest.raises(DeadlineReached, match="max_usd"):
        fly(ledger, open_at(provider.url, provider.key, "openai-batch"), purse=purse)
    fly(ledger, open_at(provider.url, provider.key, "openai-batch"))
    assert outcomes(read_replies(folder, ledger)) == {"200": 40}


@each_engine
@pytest.mark.parametrize(
    ("fault", "told"),
    [({"no_money": 1.0}, "money"), ({"forbidden": 1.0}, "403"), ({}, "score.model")],
)
def test_a_broken_world_ends_it_and_is_told(engine: str, fault: dict[str, float], told: str, folder: Folder) -> None:
    models = None if fault else frozenset({"another"})
    with serve_provider(faults=Faults(**fault), models=models) as provider:  # type: ignore[arg-type]
        with pytest.raises(EndpointError, match=told):
            fly(ask(folder, engine), open_at(provider.url, provider.key, engine), tempo=SMALL)
        assert provider.asked == 0 or not fault


@each_engine
def test_a_wrong_key_is_not_in_what_is_told(engine: str, provider: Provider, folder: Folder) -> None:
    with pytest.raises(EndpointError, match="TEST_KEY") as caught:
        fly(ask(folder, engine), open_at(provider.url, "sk-wrong-key", engine))
    assert "sk-wrong" not in str(caught.value)


@each_engine
@pytest.mark.parametrize("status", [400, 404, 418])
def test_a_key_that_the_provider_quotes_is_neither_told_nor_noted(
    engine: str, status: int, provider: Provider, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quote(*_: Any) -> None:
        raise Refusal(status, f"{provider.key} is wrong")

    monkeypatch.setattr(openai_dialect if engine == "openai-batch" else anthropic_dialect, "_create", quote)
    with pytest.raises(EndpointError) as caught:
        fly(ask(folder, engine, count=100), open_at(provider.url, provider.key, engine), tempo=SMALL)
    assert "*** is wrong" in str(caught.value)
    assert not [f for f in Path(folder.path).rglob("*") if f.is_file() and provider.key.encode() in f.read_bytes()]


def test_a_provider_that_never_answers_is_told_after_a_while(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PATIENCE_S", 0.0)
    with pytest.raises(EndpointError, match="base_url"):
        fly(ask(folder, "openai-batch"), open_at("http://127.0.0.1:9", "key", "openai-batch"))


@each_engine
def test_a_provider_that_refuses_everything_is_no_fault_of_the_rows(
    engine: str, provider: Provider, folder: Folder
) -> None:
    provider.faults = Faults(words={"question": "rejected"})
    with pytest.raises(EndpointError, match="refuses all"):
        fly(ask(folder, engine, count=100), open_at(provider.url, provider.key, engine), tempo=SMALL)


def end_after(rounds: int) -> Callable[[Any], None]:
    """Ends a flight, as another driver that takes over does."""
    seen = [0]

    def count(_: Any) -> None:
        seen[0] += 1
        if seen[0] > rounds:
            raise BusyError("another driver")

    return count


def leave_in_flight(engine: str, provider: Provider, folder: Folder) -> tuple[Ledger, Any]:
    """Batches that their driver has left, and that do not end."""
    provider.pace = Pace(polls=10_000)
    ledger, client = ask(folder, engine), open_at(provider.url, provider.key, engine)
    with pytest.raises(BusyError):
        fly(ledger, client, tempo=SMALL, tell=end_after(2))
    return ledger, client


@each_engine
def test_what_is_in_flight_is_cancelled_by_name_and_collected_later(
    engine: str, provider: Provider, folder: Folder
) -> None:
    ledger, client = leave_in_flight(engine, provider, folder)
    told = cancel_flight(ledger, client)
    assert [became for _, became in told] == [told[0][1]] * 3
    assert {batch.id for batch, _ in told} == set(provider.state.batches)
    provider.pace = Pace()
    fly(ledger, client, tempo=SMALL)
    found = outcomes(read_replies(folder, ledger))
    assert found["batch_cancelled"] + found["canceled"] + found["200"] + found["succeeded"] == 40
    assert found["200"] + found["succeeded"] >= 10  # the batch that had not been sent
    assert provider.batches == 4


@each_engine
def test_batches_of_others_are_left_alone(engine: str, provider: Provider, tmp_path: Path) -> None:
    """Two jobs with the same requests, whose replies are lost, at one account."""
    provider.faults = Faults(seed=3, lost_reply=0.7)
    client = open_at(provider.url, provider.key, engine)
    for name in ("a", "b"):
        folder = Folder(str(tmp_path / name))
        ledger = ask(folder, engine)
        fly(ledger, client, tempo=SMALL)
        assert len(read_replies(folder, ledger)) == 40
    assert provider.asked == 80


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@each_engine
def test_a_storm_costs_no_request_twice(engine: str, seed: int, folder: Folder) -> None:
    with serve_provider(pace=Pace(polls=1), faults=Faults.storm(seed, 0.05)) as provider:
        ledger = ask(folder, engine, count=60)
        fly(ledger, open_at(provider.url, provider.key, engine), tempo=SMALL)
        assert len(read_replies(folder, ledger)) > 40
        assert (provider.asked, provider.asked_twice) == (60, 0)


def test_a_batch_of_anthropics_is_told_from_others_with_as_many_requests(provider: Provider, tmp_path: Path) -> None:
    """Somebody else's is listed at once, and ours, whose reply is lost, later."""
    client = open_at(provider.url, provider.key, "anthropic-batch")
    mine, theirs = Folder(str(tmp_path / "mine")), Folder(str(tmp_path / "theirs"))
    ours, others = ask(mine, "anthropic-batch", count=10), ask(theirs, "anthropic-batch", count=10)
    done: list[Any] = []

    def disturb(_: Any) -> None:
        if not done:
            done.append(1)
            with pytest.raises(BusyError):
                fly(others, client, tempo=SMALL, tell=end_after(0))

    provider.faults = Faults(seed=1, lost_reply=1.0, at_most_a_row=1, listed_after_s=0.05)
    fly(ours, client, tempo=SMALL, tell=disturb)
    assert len(read_replies(mine, ours)) == 10
    assert provider.asked == 10 * provider.batches
    fly(others, client, tempo=SMALL)
    assert len(read_replies(theirs, others)) == 10
    assert (provider.batches, provider.asked) == (2, 20)
