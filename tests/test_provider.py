"""The provider of the tests, through the official clients."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import jsonschema
import numpy as np
import openai
import pytest

from tests.provider import Faults, Limits, Pace, Provider, serve_provider, serve_recorder
from tests.provider.answers import chat, instance, message

CHAT = "/v1/chat/completions"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serve_provider() as served:
        yield served


def openai_client(provider: Provider, **more: Any) -> openai.OpenAI:
    plain = openai.DefaultHttpxClient(verify=False)  # no certificates to load: a client is made in a moment
    asked = {"base_url": provider.url + "/v1", "api_key": provider.key, "max_retries": 0, "http_client": plain}
    return openai.OpenAI(**{**asked, **more})


def anthropic_client(provider: Provider, **more: Any) -> anthropic.Anthropic:
    plain = anthropic.DefaultHttpxClient(verify=False)
    asked = {"base_url": provider.url, "api_key": provider.key, "max_retries": 0, "http_client": plain}
    return anthropic.Anthropic(**{**asked, **more})


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "writer", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}


def upload(client: openai.OpenAI, bodies: dict[str, Any], url: str = CHAT) -> str:
    lines = [{"custom_id": name, "method": "POST", "url": url, "body": asked} for name, asked in bodies.items()]
    return upload_text(client, "".join(json.dumps(line) + "\n" for line in lines))


def upload_text(client: openai.OpenAI, text: str) -> str:
    return client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), purpose="batch").id


def create(client: openai.OpenAI, file_id: str, url: Any = CHAT, **more: Any) -> Any:
    return client.batches.create(input_file_id=file_id, endpoint=url, completion_window="24h", **more)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    text = client.files.content(file_id).read().decode() if file_id else ""
    return [json.loads(line) for line in text.split("\n") if line]


def ask_anthropic(client: anthropic.Anthropic, bodies: dict[str, Any]) -> Any:
    return client.messages.batches.create(requests=[{"custom_id": k, "params": v} for k, v in bodies.items()])


def test_a_batch_of_openai_is_uploaded_run_and_downloaded(provider: Provider) -> None:
    client = openai_client(provider)
    asked = {"a": body("a red kettle"), "b": body("a spade")}
    made = create(client, upload(client, asked), metadata={"part": "0"})
    assert made.status == "validating"
    done = client.batches.retrieve(made.id)
    assert (done.status, done.metadata, done.error_file_id) == ("completed", {"part": "0"}, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (2, 2, 0)
    found = {line["custom_id"]: line["response"] for line in lines_of(client, done.output_file_id)}
    assert found.keys() == asked.keys()
    for name, reply in found.items():
        assert reply["status_code"] == 200
        assert reply["body"] == chat(asked[name])
    assert done.usage.input_tokens == 5
    assert (provider.asked, provider.distinct, provider.batches) == (2, 2, 1)


def test_a_batch_of_anthropic_is_run_and_its_results_are_read(provider: Provider) -> None:
    client = anthropic_client(provider)
    asked = {"a": body("a red kettle"), "b": body("a spade")}
    made = ask_anthropic(client, asked)
    assert (made.processing_status, made.request_counts.processing, made.results_url) == ("in_progress", 2, None)
    done = client.messages.batches.retrieve(made.id)
    assert done.processing_status == "ended"
    assert done.results_url.startswith(provider.url)
    found = {line.custom_id: line.result for line in client.messages.batches.results(made.id)}
    for name, result in found.items():
        assert result.type == "succeeded"
        assert result.message.content[0].text == message(asked[name])["content"][0]["text"]
        assert result.message.usage.service_tier == "batch"
    assert found.keys() == asked.keys()
    assert done.request_counts.succeeded == provider.asked == 2


def test_live_calls_answer_as_batches_do(provider: Provider) -> None:
    asked = body("a red kettle")
    written = openai_client(provider).chat.completions.create(**asked)
    assert written.choices[0].message.content == chat(asked)["choices"][0]["message"]["content"]
    assert written.usage.prompt_tokens == 3
    told = anthropic_client(provider).messages.create(**asked)
    assert told.content[0].text == message(asked)["content"][0]["text"]
    assert (provider.live_calls, provider.most_live_at_once, provider.asked) == (2, 1, 0)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_have_unit_norm_and_the_size_that_is_asked(provider: Provider, form: Any) -> None:
    client = openai_client(provider)
    asked = ["a kettle", "a spade", "a kettle"]
    found = client.embeddings.create(model="embedder", input=asked, dimensions=8, encoding_format=form).data
    again = client.embeddings.create(model="embedder", input=asked[0], dimensions=8).data
    vectors = np.array([client_side(row.embedding) for row in [*found, *again]])
    assert vectors.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] == vectors[3]).all()
    assert (vectors[0] != vectors[1]).any()


def client_side(embedding: Any) -> np.ndarray:
    """A vector as a client decodes it; one that was asked for in base64 by name stays so."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def test_a_pace_in_polls_holds_batches_back(provider: Provider) -> None:
    provider.pace = Pace(polls=2)
    client = openai_client(provider)
    made = create(client, upload(client, {"a": body("x")}))
    assert [client.batches.retrieve(made.id).status for _ in range(3)] == ["in_progress", "finalizing", "completed"]


def test_a_pace_in_seconds_holds_batches_back(provider: Provider) -> None:
    provider.pace = Pace(seconds=3600)
    client = openai_client(provider)
    made = create(client, upload(client, {"a": body("x")}))
    assert client.batches.retrieve(made.id).status == "in_progress"
    provider.state.batches[made.id].created -= 3600
    assert client.batches.retrieve(made.id).status == "completed"


def test_a_batch_of_embeddings_answers_as_live_calls_do(provider: Provider) -> None:
    asked = {"model": "embedder", "input": ["a kettle", "a spade"], "dimensions": 4, "encoding_format": "float"}
    done, lines = run_openai(provider, {"a": asked}, "/v1/embeddings")
    found = [row["embedding"] for row in lines["a"]["response"]["body"]["data"]]
    live = openai_client(provider).embeddings.create(**asked)
    assert found == [row.embedding for row in live.data]
    assert done.usage.input_tokens == live.usage.prompt_tokens == 4


def test_a_wrong_key_is_refused_in_both_dialects(provider: Provider) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai_client(provider, api_key="wrong").models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client(provider, api_key="wrong").models.list()


def test_lists_come_in_pages(provider: Provider) -> None:
    client = openai_client(provider)
    file_id = upload(client, {"a": body("x")})
    made = [create(client, file_id).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert len(client.batches.list(limit=2).data) == 2
    told = anthropic_client(provider)
    made = [ask_anthropic(told, {"a": body("x")}).id for _ in range(5)]
    assert [batch.id for batch in told.messages.batches.list(limit=2)] == made[::-1]


def test_a_restart_forgets_nothing(provider: Provider) -> None:
    provider.pace = Pace(polls=math.inf)
    client = openai_client(provider, max_retries=2)
    made = create(client, upload(client, {"a": body("x")}))
    assert client.batches.retrieve(made.id).status == "in_progress"
    provider.restart()
    provider.pace = Pace()
    assert client.batches.retrieve(made.id).status == "completed"
    assert provider.asked == 1


def test_files_are_listed_and_deleted(provider: Provider) -> None:
    client = openai_client(provider)
    made = [upload(client, {"a": body("x")}) for _ in range(3)]
    assert [f.id for f in client.files.list(limit=2, purpose="batch")] == made[::-1]
    assert [f.id for f in client.files.list(order="asc")] == made
    assert client.files.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made[0])


def line(custom_id: str = "a", *, url: str = CHAT, **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body("x", **more)}) + "\n"


@pytest.mark.parametrize(
    ("text", "code", "number"),
    [
        ("", "empty_file", None),
        (line() + "{\n", "invalid_json_line", 2),
        (line() + line("b") + line(), "duplicate_custom_id", 3),
        (line() + line("b", model="other"), "mismatched_model", 2),
        (line() + line("b", url="/v1/embeddings"), "mismatched_url", 2),
        (line("b", model="unheard"), "model_not_found", 1),
        ("".join(line(str(i)) for i in range(4)), "too_many_tasks", None),
    ],
)
def test_a_file_at_fault_fails_its_batch_and_names_the_line(text: str, code: str, number: int | None) -> None:
    with serve_provider(models=["writer", "other"], limits=Limits(requests=3)) as provider:
        client = openai_client(provider)
        done = client.batches.retrieve(create(client, upload_text(client, text)).id)
        assert done.status == "failed"
        assert [(error.code, error.line) for error in done.errors.data] == [(code, number)]
        assert provider.asked == 0


def test_more_than_the_limits_is_refused() -> None:
    with serve_provider(limits=Limits(bytes=1000, embedding_inputs=4, requests=2)) as provider:
        client, told = openai_client(provider), anthropic_client(provider)
        with pytest.raises(openai.BadRequestError, match="too large"):
            upload(client, {"a": body("x" * 1000)})
        asked = {"a": {"model": "e", "input": ["x"] * 2}, "b": {"model": "e", "input": ["x"] * 3}}
        made = create(client, upload(client, asked, "/v1/embeddings"), "/v1/embeddings")
        assert client.batches.retrieve(made.id).status == "failed"
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask_anthropic(told, {"a": body("x" * 1000)})
        assert caught.value.status_code == 413
        with pytest.raises(anthropic.BadRequestError, match="at most 2"):
            ask_anthropic(told, {name: body("x") for name in "abc"})


@pytest.mark.parametrize("names", [["a", "a"], ["a", "what is it?"], ["a" * 65], []])
def test_anthropic_refuses_a_batch_whose_ids_are_wrong(provider: Provider, names: list[str]) -> None:
    with pytest.raises(anthropic.BadRequestError):
        anthropic_client(provider).messages.batches.create(
            requests=[{"custom_id": name, "params": body("x")} for name in names]
        )
    assert provider.asked == 0


def test_enqueued_tokens_are_limited_until_a_batch_is_done() -> None:
    with serve_provider(limits=Limits(enqueued_tokens=3), pace=Pace(polls=1)) as provider:
        client = openai_client(provider)
        first, second = (create(client, upload(client, {"a": body("one two")})) for _ in range(2))
        failed = client.batches.retrieve(second.id)
        assert (failed.status, failed.errors.data[0].code) == ("failed", "token_limit_exceeded")
        assert [client.batches.retrieve(first.id).status for _ in range(2)] == ["in_progress", "completed"]
        assert create(client, upload(client, {"a": body("one two")})).status == "validating"
        assert client.batches.list().data[0].status == "in_progress"


def many(count: int = 60) -> dict[str, Any]:
    return {f"id-{i}": body(f"text {i}") for i in range(count)}


def run_openai(provider: Provider, asked: dict[str, Any], url: Any = CHAT) -> tuple[Any, dict[str, Any]]:
    """The batch at its end, and its lines of both files by custom id."""
    client = openai_client(provider)
    done = client.batches.retrieve(create(client, upload(client, asked, url), url).id)
    lines = lines_of(client, done.output_file_id) + lines_of(client, done.error_file_id)
    return done, {line["custom_id"]: line for line in lines}


def run_anthropic(provider: Provider, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    client = anthropic_client(provider)
    made = ask_anthropic(client, asked)
    done = client.messages.batches.retrieve(made.id)
    return done, {line.custom_id: line.result for line in client.messages.batches.results(made.id)}


def test_a_batch_that_is_cancelled_keeps_what_was_done(provider: Provider) -> None:
    provider.pace = Pace(polls=3)
    client, told = openai_client(provider), anthropic_client(provider)
    made, batch = create(client, upload(client, many())), ask_anthropic(told, many())
    for _ in range(2):
        client.batches.retrieve(made.id)
        told.messages.batches.retrieve(batch.id)
    assert client.batches.cancel(made.id).status == "cancelling"
    assert told.messages.batches.cancel(batch.id).processing_status == "canceling"
    done = client.batches.retrieve(made.id)
    assert (done.status, done.request_counts.completed + done.request_counts.failed) == ("cancelled", 60)
    assert len(lines_of(client, done.output_file_id)) == done.request_counts.completed > 10
    codes = {line["error"]["code"] for line in lines_of(client, done.error_file_id)}
    assert codes == {"batch_cancelled"}
    results = told.messages.batches.retrieve(batch.id).request_counts
    assert results.canceled + results.succeeded == 60
    assert provider.canceled == results.canceled + done.request_counts.failed > 10
    assert provider.failed_by_itself == 0
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)


def test_a_batch_expires_part_way() -> None:
    with serve_provider(faults=Faults(expired=1, seed=1)) as provider:
        done, lines = run_openai(provider, many())
        good = [line for line in lines.values() if line["response"]]
        assert done.status == "expired"
        assert {line["error"]["code"] for line in lines.values() if line["error"]} == {"batch_expired"}
        assert 0 < len(good) == done.request_counts.completed < 60 == len(lines)
        ended, results = run_anthropic(provider, many())
        assert ended.processing_status == "ended"
        assert {result.type for result in results.values()} == {"succeeded", "expired"}
        assert 0 < ended.request_counts.expired < 60
        assert provider.failed_by_itself == done.request_counts.failed + ended.request_counts.expired


OF_OPENAI: dict[str, Callable[[Any], bool]] = {
    "errored": lambda reply: reply["status_code"] in (429, 500, 503),
    "bad_request": lambda reply: reply["status_code"] == 400,
    "context_overflow": lambda reply: reply["body"]["error"]["code"] == "context_length_exceeded",
    "no_status": lambda reply: reply["status_code"] == 0 and not reply["body"],
    "refusal": lambda reply: bool(choice(reply)["message"]["refusal"]) and choice(reply)["message"]["content"] is None,
    "content_filter": lambda reply: choice(reply)["finish_reason"] == "content_filter",
    "length": lambda reply: choice(reply)["finish_reason"] == "length" and bool(choice(reply)["message"]["content"]),
}


def choice(reply: Any) -> Any:
    return reply["body"]["choices"][0]


@pytest.mark.parametrize("fault", OF_OPENAI)
def test_a_fault_of_a_request_shows_in_its_line_of_openai(fault: str) -> None:
    with serve_provider(faults=Faults(words={"7": fault})) as provider:
        _, lines = run_openai(provider, many(9))
        assert OF_OPENAI[fault](lines.pop("id-7")["response"])
        assert all(line["response"]["status_code"] == 200 for line in lines.values())
        assert provider.failures == ({} if fault == "length" else {fault: 1})


OF_ANTHROPIC: dict[str, Callable[[Any], bool]] = {
    "errored": lambda result: result.error.error.type in ("api_error", "rate_limit_error"),
    "bad_request": lambda result: result.error.error.type == "invalid_request_error",
    "context_overflow": lambda result: "too long" in result.error.error.message,
    "no_status": lambda result: result.type == "errored",
    "canceled": lambda result: result.type == "canceled",
    "refusal": lambda result: result.message.stop_reason == "refusal" and not result.message.content,
    "length": lambda result: result.message.stop_reason in ("max_tokens", "model_context_window_exceeded"),
}


@pytest.mark.parametrize("fault", OF_ANTHROPIC)
def test_a_fault_of_a_request_shows_in_its_line_of_anthropic(fault: str) -> None:
    with serve_provider(faults=Faults(words={"7": fault})) as provider:
        _, results = run_anthropic(provider, many(9))
        assert OF_ANTHROPIC[fault](results.pop("id-7"))
        assert {result.type for result in results.values()} == {"succeeded"}
        assert provider.failures == ({} if fault == "length" else {fault: 1})


@pytest.mark.parametrize(("fault", "left"), [("missing", 8), ("malformed", 9), ("repeated", 10)])
def test_lines_are_missing_malformed_or_come_twice(fault: str, left: int) -> None:
    with serve_provider(faults=Faults(words={"7": fault})) as provider:
        client = openai_client(provider)
        done = client.batches.retrieve(create(client, upload(client, many(9))).id)
        text = client.files.content(done.output_file_id).read().decode()
        assert text.count("\n") == left
        readable = [part for part in text.split("\n") if part.startswith('{"id') and part.endswith("}")]
        assert len(readable) == {"malformed": 8}.get(fault, left)
        assert done.request_counts.completed == 9


def test_a_batch_in_which_all_fails_has_no_output_file() -> None:
    with serve_provider(faults=Faults(fail_all=1)) as provider:
        done, lines = run_openai(provider, many(3))
        assert (done.status, done.output_file_id, len(lines), done.request_counts.failed) == ("completed", None, 3, 3)
    with serve_provider(faults=Faults(fail_all=1, null_ids=1)) as provider:
        done, lines = run_openai(provider, many(3))
        assert (done.output_file_id, done.error_file_id, lines) == (None, None, {})
    with serve_provider(faults=Faults(fail_all=1, empty_ids=1)) as provider:
        assert run_openai(provider, many(3))[0].output_file_id == ""


def test_counts_lie() -> None:
    with serve_provider(faults=Faults(fail_all=1, hidden_errors=1)) as provider:
        done, lines = run_openai(provider, many(3))
        assert (done.request_counts.failed, done.request_counts.completed, len(lines)) == (0, 3, 3)
        assert run_anthropic(provider, many(4))[0].request_counts.succeeded == 4
    with serve_provider(faults=Faults(lying_counts=1)) as provider:
        done, lines = run_openai(provider, many(4))
        assert (done.request_counts.total, done.request_counts.completed, len(lines)) == (5, 2, 4)


def test_results_come_out_of_order_and_with_lines_of_others() -> None:
    with serve_provider(faults=Faults(out_of_order=1, foreign_lines=1)) as provider:
        _, lines = run_openai(provider, many(9))
        assert list(lines) != ["somebody-elses", *many(9)]
        assert lines.keys() == {"somebody-elses", *many(9)}


def test_a_request_can_fail_its_whole_batch() -> None:
    with serve_provider(faults=Faults(words={"7": "rejected"})) as provider:
        done, _ = run_openai(provider, many(9))
        assert [(e.line, e.code) for e in done.errors.data] == [(8, "invalid_request")]
        with pytest.raises(anthropic.BadRequestError, match=r"requests\.7"):
            run_anthropic(provider, many(9))
        assert provider.asked == 0
        provider.faults = Faults(words={"7": "rejected"}, unnamed=1)
        done, _ = run_openai(provider, many(9))
        assert [e.line for e in done.errors.data] == [None]
        with pytest.raises(anthropic.BadRequestError) as caught:
            run_anthropic(provider, many(9))
        assert "requests." not in str(caught.value)
        assert run_openai(provider, many(7))[0].status == "completed"


def test_a_lost_reply_leaves_a_batch_that_is_found_in_the_list(provider: Provider) -> None:
    client, told = openai_client(provider), anthropic_client(provider)
    file_id = upload(client, {"a": body("x")})
    provider.faults = Faults(lost_reply=1)
    with pytest.raises(openai.APIConnectionError):
        create(client, file_id, metadata={"part": "7"})
    with pytest.raises(anthropic.APIConnectionError):
        ask_anthropic(told, {"b": body("y")})
    assert [batch.metadata for batch in client.batches.list()] == [{"part": "7"}]
    (batch,) = told.messages.batches.list()
    assert [line.custom_id for line in told.messages.batches.results(batch.id)] == ["b"]
    assert provider.asked == 2


def test_a_list_can_lag_behind(provider: Provider) -> None:
    client = openai_client(provider)
    provider.faults = Faults(listed_after_s=3600)
    made = create(client, upload(client, {"a": body("x")}))
    assert client.batches.list().data == []
    assert client.batches.retrieve(made.id).status == "completed"
    provider.faults = Faults()
    assert [batch.id for batch in client.batches.list()] == [made.id]


def test_downloads_lose_their_end(provider: Provider) -> None:
    client = openai_client(provider)
    done = client.batches.retrieve(create(client, upload(client, many(9))).id)
    whole = client.files.content(done.output_file_id).read()
    size = client.files.retrieve(done.output_file_id).bytes
    assert size == len(whole)
    provider.faults = Faults(short_download=1, at_most_a_row=1)
    assert len(client.files.content(done.output_file_id).read()) < size
    assert client.files.content(done.output_file_id).read() == whole
    provider.faults = Faults(truncated_download=1, at_most_a_row=1)
    with pytest.raises(openai.APIConnectionError):
        client.files.content(done.output_file_id)
    assert client.files.content(done.output_file_id).read() == whole


def test_too_many_calls_are_told_when_to_come_again() -> None:
    with serve_provider(faults=Faults(rate_limit=1, retry_after_s=7)) as provider:
        with pytest.raises(openai.RateLimitError) as caught:
            openai_client(provider).models.list()
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.response.headers["x-ratelimit-reset-requests"] == "7s"
        with pytest.raises(anthropic.RateLimitError) as told:
            anthropic_client(provider).models.list()
        assert told.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert told.value.type == "rate_limit_error"
        provider.faults = Faults(rate_limit=1, retry_after_s=7, retry_after_as_date=True)
        with pytest.raises(openai.RateLimitError) as dated:
            openai_client(provider).files.list()
        wait = parsedate_to_datetime(dated.value.response.headers["retry-after"]) - datetime.now(UTC)
        assert 4 < wait.total_seconds() <= 7


def test_errors_of_the_server_end_after_a_few_in_a_row() -> None:
    with serve_provider(faults=Faults(server_error=1, at_most_a_row=2)) as provider:
        client = openai_client(provider)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                client.models.list()
        assert client.models.list().data[0].id == "writer"
    with serve_provider(faults=Faults(conflict=1)) as provider, pytest.raises(openai.ConflictError):
        upload(openai_client(provider), {"a": body("x")})


def test_no_money_and_no_right_are_told_as_the_providers_do() -> None:
    with serve_provider(faults=Faults(no_money=1)) as provider:
        with pytest.raises(openai.RateLimitError) as caught:
            upload(openai_client(provider), {"a": body("x")})
        assert caught.value.code == "insufficient_quota"
        with pytest.raises(anthropic.APIStatusError) as told:
            ask_anthropic(anthropic_client(provider), {"a": body("x")})
        assert told.value.type == "billing_error"
    with serve_provider(faults=Faults(forbidden=1)) as provider:
        with pytest.raises(openai.PermissionDeniedError):
            openai_client(provider).models.list()
        with pytest.raises(anthropic.PermissionDeniedError):
            anthropic_client(provider).models.list()
    with serve_provider(faults=Faults(no_money_left=1)) as provider:
        assert run_openai(provider, many(2))[0].errors.data[0].code == "billing_hard_limit_reached"


def test_an_unknown_model_is_refused_live_and_in_a_batch() -> None:
    with serve_provider(models=["other"]) as provider:
        with pytest.raises(openai.NotFoundError) as caught:
            openai_client(provider).chat.completions.create(**body("x"))
        assert caught.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError):
            anthropic_client(provider).messages.create(**body("x"))
        _, results = run_anthropic(provider, many(1))
        assert results["id-0"].error.error.type == "not_found_error"


def test_live_calls_are_limited() -> None:
    with serve_provider(limits=Limits(live_requests=2)) as provider:
        client = openai_client(provider)
        for text in "ab":
            client.chat.completions.create(**body(text))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**body("c"))
        assert 50 < float(caught.value.response.headers["retry-after"]) <= 60
        assert (provider.live_calls, provider.refused_live) == (3, 1)


def test_live_calls_at_once_are_counted_and_limited() -> None:
    slow = Faults(slow=1, slow_s=0.3)
    with serve_provider(faults=slow, limits=Limits(live_at_once=2)) as provider, ThreadPoolExecutor(4) as pool:
        client = openai_client(provider)
        made = [pool.submit(client.chat.completions.create, **body(text)) for text in "abcd"]
        refused = [one for one in made if isinstance(one.exception(), openai.RateLimitError)]
        assert len(refused) == provider.refused_live == 2
        assert (provider.live_calls, provider.most_live_at_once) == (4, 2)


@pytest.mark.parametrize("fault", ["errored", "bad_request", "refusal", "content_filter", "length"])
def test_faults_befall_live_requests_too(fault: str) -> None:
    with serve_provider(faults=Faults(words={"kettle": fault}, at_most_a_row=1)) as provider:
        client = openai_client(provider)
        if fault in ("errored", "bad_request"):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(**body("a kettle"))
        else:
            reply = client.chat.completions.create(**body("a kettle")).choices[0]
            assert reply.message.refusal or reply.finish_reason == fault
        assert client.chat.completions.create(**body("a kettle")).choices[0].finish_reason == "stop"


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["kitchen", "garden"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 2, "maxItems": 3},
        "price": {"type": ["number", "null"], "minimum": 3, "maximum": 4},
        "count": {"type": "integer", "minimum": 1, "maximum": 5},
        "sure": {"type": "boolean"},
        "either": {"anyOf": [{"const": 7}, {"type": "string", "maxLength": 3, "minLength": 2}]},
    },
    "required": ["kind", "parts", "price", "count", "sure", "either"],
    "additionalProperties": False,
    "$defs": {
        "part": {
            "type": "object",
            "properties": {"day": {"type": "string", "format": "date"}},
            "required": ["day"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("seed", range(20))
def test_answers_keep_to_a_schema(seed: int) -> None:
    jsonschema.validate(instance(SCHEMA, random.Random(seed)), SCHEMA)


def test_schemas_are_asked_in_both_dialects(provider: Provider) -> None:
    reply = openai_client(provider).chat.completions.create(**body("x", response_format=strictly(SCHEMA)))
    jsonschema.validate(json.loads(reply.choices[0].message.content), SCHEMA)
    told = anthropic_client(provider).messages.create(
        **body("x", output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    )
    jsonschema.validate(json.loads(told.content[0].text), SCHEMA)
    loose = openai_client(provider).chat.completions.create(**body("x", response_format={"type": "json_object"}))
    assert isinstance(json.loads(loose.choices[0].message.content), dict)


def strictly(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


def held(kind: str, **more: Any) -> dict[str, Any]:
    """An object with one key."""
    value = {"type": kind, **more}
    return {"type": "object", "properties": {"a": value}, "required": ["a"], "additionalProperties": False}


FREE = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 5},
        {"max_tokens": 0},
        {"messages": []},
        {"temperature": 0.5},
        {"response_format": strictly(FREE)},
        {"response_format": strictly(held("string", minLength=2))},
        {"response_format": strictly({"type": "string"})},
    ],
)
def test_a_batch_holds_its_requests_to_what_openai_takes(wrong: dict[str, Any]) -> None:
    with serve_provider(without=["temperature"]) as provider:
        done, lines = run_openai(provider, {"a": {**body("x"), **wrong}, "b": body("y")})
        assert done.status == "completed"
        assert [lines[name]["response"]["status_code"] for name in "ab"] == [400, 200]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 5},
        {"max_tokens": 0},
        {"messages": []},
        {"temperature": 0.5},
        {"output_config": {"format": {"type": "json_schema", "schema": FREE}}},
        {"output_config": {"format": {"type": "json_schema", "schema": held("integer", minimum=2)}}},
        {"output_config": {"format": {"type": "json_schema", "schema": held("array", items={}, minItems=2)}}},
    ],
)
def test_a_batch_holds_its_requests_to_what_anthropic_takes(wrong: dict[str, Any]) -> None:
    with serve_provider(without=["temperature"]) as provider:
        _, results = run_anthropic(provider, {"a": {**body("x"), **wrong}, "b": body("y")})
        assert [results[name].type for name in "ab"] == ["errored", "succeeded"]


def test_schemas_that_providers_take_are_kept_in_batches(provider: Provider) -> None:
    openai_takes, anthropic_takes = held("integer", minimum=2, maximum=3), held("string", enum=["yes", "no"])
    _, lines = run_openai(provider, {"a": body("x", response_format=strictly(openai_takes))})
    jsonschema.validate(json.loads(choice(lines["a"]["response"])["message"]["content"]), openai_takes)
    form = {"format": {"type": "json_schema", "schema": anthropic_takes}}
    _, results = run_anthropic(provider, {"a": body("x", output_config=form)})
    jsonschema.validate(json.loads(results["a"].message.content[0].text), anthropic_takes)


def test_words_have_probabilities(provider: Provider) -> None:
    asked = body("x", logprobs=True, top_logprobs=2)
    told = openai_client(provider).chat.completions.create(**asked).choices[0]
    assert "".join(one.token for one in told.logprobs.content) == told.message.content
    assert [len(one.top_logprobs) for one in told.logprobs.content] == [2] * len(told.logprobs.content)


def test_a_prompt_that_is_too_long_fails_in_its_line() -> None:
    with serve_provider(limits=Limits(context_tokens=4)) as provider:
        _, lines = run_openai(provider, {"a": body("one two three four five"), "b": body("one")})
        assert lines["a"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert lines["b"]["response"]["status_code"] == 200
        assert provider.failed_by_itself == 1


@pytest.mark.parametrize("make", [openai_client, anthropic_client])
def test_a_redirect_sends_its_caller_to_another_server(provider: Provider, make: Callable[..., Any]) -> None:
    with serve_recorder() as recorder:
        provider.redirect_to, provider.redirect_only = recorder.url, "GET /models"
        make(provider, default_headers={"x-also": "a secret"}).models.list()
        assert recorder.calls == ["GET /v1/models"]
        assert recorder.heard("a secret")
        assert provider.headers[-1]["authorization"] == "Bearer <key>"
        assert provider.key not in str(provider.headers)


def test_results_can_lie_on_another_server_that_hears_the_key(provider: Provider) -> None:
    client = anthropic_client(provider)
    with serve_recorder() as recorder:
        provider.results_base = recorder.url
        made = ask_anthropic(client, {"a": body("x")})
        assert client.messages.batches.retrieve(made.id).results_url.startswith(recorder.url)
        list(client.messages.batches.results(made.id))
        assert recorder.heard(provider.key)


def test_the_same_seed_draws_the_same_faults() -> None:
    def verdicts(seed: int) -> list[str]:
        with serve_provider(faults=Faults(errored=0.5), seed=seed) as provider:
            return [result.type for result in run_anthropic(provider, many(20))[1].values()]

    assert verdicts(1) == verdicts(1) != verdicts(2)


def test_a_request_that_is_asked_again_without_need_is_counted() -> None:
    with serve_provider(faults=Faults(words={"text 0": "errored"})) as provider:
        run_openai(provider, many(2))
        run_openai(provider, {"again": body("text 0")})
        assert (provider.asked, provider.distinct, provider.failed_by_itself, provider.asked_twice) == (3, 2, 2, 0)
        run_openai(provider, {"again": body("text 1")})
        assert provider.asked_twice == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_patient_client_gets_every_answer_through_a_storm(dialect: str, seed: int) -> None:
    asked = many(40)
    right = {name: spoken(chat(one) if dialect == "openai" else message(one)) for name, one in asked.items()}
    with serve_provider(faults=Faults.storm(seed, 0.1, slow_s=0.001, length=0)) as provider:
        answers: dict[str, str] = {}
        for number in range(20):
            if left := {name: one for name, one in asked.items() if name not in answers}:
                get = from_openai if dialect == "openai" else from_anthropic
                answers |= get(provider, left, number)
        assert answers == right
        assert provider.asked_twice == 0
        assert provider.asked == provider.distinct + provider.failed_by_itself
        assert provider.failed_by_itself > 0


def spoken(reply: dict[str, Any]) -> str:
    """The text of a good answer; "" for a refusal."""
    if "choices" in reply:
        return reply["choices"][0]["message"]["content"] or ""
    return reply["content"][0]["text"] if reply["content"] else ""


def patiently(call: Callable[[], Any]) -> Any:
    """What a call that may be made again and again returns at last."""
    for _ in range(30):
        try:
            return call()
        except (openai.APIConnectionError, openai.APIStatusError, anthropic.APIError):
            time.sleep(0.01)  # while it restarts, it refuses connections
    return call()


def from_openai(provider: Provider, asked: dict[str, Any], number: int) -> dict[str, str]:
    """The good answers of a batch that is made once, whatever replies are lost, from files that are whole."""
    client = openai_client(provider)
    file_id = patiently(lambda: upload(client, asked))

    def find_or_make() -> str:
        for batch in client.batches.list():
            if batch.metadata == {"number": str(number)}:
                return batch.id
        return create(client, file_id, metadata={"number": str(number)}).id

    def end() -> Any:
        while (batch := client.batches.retrieve(batch_id)).status in ("validating", "in_progress"):
            pass
        return batch

    def load(file_id: str) -> str:
        data = client.files.content(file_id).read()
        if len(data) != client.files.retrieve(file_id).bytes:
            raise openai.APIConnectionError(request=None)  # type: ignore[arg-type]
        return data.decode()

    batch_id = patiently(find_or_make)
    done = patiently(end)
    text = "".join(patiently(lambda one=one: load(one)) for one in (done.output_file_id, done.error_file_id) if one)
    replies = {line["custom_id"]: line["response"] for line in readable(text)}
    good = {name: spoken(reply["body"]) for name, reply in replies.items() if reply and reply["status_code"] == 200}
    return {name: text for name, text in good.items() if text}


def from_anthropic(provider: Provider, asked: dict[str, Any], number: int) -> dict[str, str]:
    """The same; batches without metadata are told apart by how many there were."""
    client = anthropic_client(provider)

    def find_or_make() -> str:
        made = list(client.messages.batches.list())
        return made[0].id if len(made) > number else ask_anthropic(client, asked).id

    def load() -> str:
        assert client.messages.batches.retrieve(batch_id).processing_status == "ended"
        return client.get(f"/v1/messages/batches/{batch_id}/results", cast_to=bytes).decode()

    batch_id = patiently(find_or_make)
    text = max((patiently(load) for _ in range(4)), key=len)  # no size is told: a short one is known by another
    results = {line["custom_id"]: line["result"] for line in readable(text)}
    good = {name: spoken(r["message"]) for name, r in results.items() if r["type"] == "succeeded"}
    return {name: text for name, text in good.items() if text}


def readable(text: str) -> list[dict[str, Any]]:
    """The lines that are whole objects of somebody's."""
    parts = (part for part in text.split("\n") if part.startswith("{") and part.endswith("}"))
    return [line for line in map(json.loads, parts) if "custom_id" in line]
