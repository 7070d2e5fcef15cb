"""The provider of the tests, through the official clients."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import anthropic
import numpy as np
import openai
import pytest

from tests.provider import Pace, Provider, serve_provider
from tests.provider.answers import chat, message

CHAT = "/v1/chat/completions"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serve_provider() as served:
        yield served


def openai_client(provider: Provider, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": provider.url + "/v1", "api_key": provider.key, "max_retries": 0, **more})


def anthropic_client(provider: Provider, **more: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(**{"base_url": provider.url, "api_key": provider.key, "max_retries": 0, **more})


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
    import base64

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def test_a_pace_in_polls_holds_batches_back(provider: Provider) -> None:
    provider.pace = Pace(polls=2)
    client = openai_client(provider)
    made = create(client, upload(client, {"a": body("x")}))
    assert [client.batches.retrieve(made.id).status for _ in range(3)] == ["in_progress", "in_progress", "completed"]


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
