"""A batch on the test's provider through the official clients, as plainly as it can be: what jobs do is not here."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tests.provider import Provider
from udfs.hosted.answering import answer_rows
from udfs.hosted.asking import ask_rows
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.tasks import HostedTask, make_hosted
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec

KEY = "GRISTMILL_TEST_KEY"


def hosted_spec(
    provider: Provider | None = None,
    task: str = "text-generation",
    *,
    engine: Any = "openai-batch",
    model: str = "gpt-test",
    endpoint: dict[str, Any] | None = None,
    **options: Any,
) -> ScoreSpec[Any]:
    """A spec of a hosted model; without a provider, nothing can be asked of it."""
    base = provider.url if provider else "http://127.0.0.1:9"
    url = base if engine == "anthropic-batch" else f"{base}/v1"
    told = {"base_url": url, "api_key_env": KEY, **(endpoint or {})}
    return make_spec(task, model, endpoint=Endpoint(engine=engine, **told), **options)


def run_batch(provider: Provider, spec: ScoreSpec[Any], rows: pa.Array) -> list[Any]:
    """The results of some rows, by one batch."""
    task = make_hosted(spec)
    lines = ask_and_wait(provider, task, ask_rows(rows, task))
    return answer(task, rows, lines)


def answer(task: HostedTask, rows: pa.Array, lines: Iterable[str]) -> list[Any]:
    """The results of some rows, by lines of results."""
    held = [*lines]
    replies = pa.StructArray.from_arrays(
        [pa.nulls(len(held), rows.type), pa.array(held, pa.string())], ["text", "reply"]
    )
    asked = pa.StructArray.from_arrays([rows, pa.nulls(len(rows), pa.string())], ["text", "reply"])
    results = [
        result for batch in answer_rows([replies, asked], task) for result in batch.to_pylist(maps_as_pydicts="strict")
    ]
    assert results[: len(held)] == [None] * len(held)
    return results[len(held) :]


def ask_and_wait(provider: Provider, task: HostedTask, asked: pa.StructArray) -> list[str]:
    """Lines of results and errors of a batch of requests."""
    requests = {request["id"]: request["line"] for row in asked.to_pylist() for request in row["requests"]}
    ask = _ask_anthropic if task.endpoint.engine == "anthropic-batch" else _ask_openai
    return ask(provider, {f"gm-00000000-{name}": json.loads(line) for name, line in requests.items()}, task.path)


def _ask_openai(provider: Provider, bodies: dict[str, Any], path: str) -> list[str]:
    import openai

    client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key=provider.key, max_retries=0)
    told = [{"custom_id": n, "method": "POST", "url": f"/v1{path}", "body": body} for n, body in bodies.items()]
    data = "\n".join(map(json.dumps, told)).encode()
    file = client.files.create(file=("requests.jsonl", io.BytesIO(data)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=f"/v1{path}", completion_window="24h")  # type: ignore[arg-type]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    assert batch.status in ("completed", "expired"), batch
    found = [client.files.content(name).content for name in (batch.output_file_id, batch.error_file_id) if name]
    return [line for part in found for line in part.decode().split("\n") if line]


def _ask_anthropic(provider: Provider, bodies: dict[str, Any], path: str) -> list[str]:
    import anthropic

    client = anthropic.Anthropic(base_url=provider.url, api_key=provider.key, max_retries=0)
    told: Any = [{"custom_id": name, "params": body} for name, body in bodies.items()]
    batch = client.messages.batches.create(requests=told)
    while batch.processing_status != "ended":
        time.sleep(0.02)
        batch = client.messages.batches.retrieve(batch.id)
    told = urllib.request.Request(
        str(batch.results_url), headers={"x-api-key": provider.key, "anthropic-version": "2023-06-01"}
    )
    with urllib.request.urlopen(told) as response:  # the client gives up on a line that is malformed
        return [line for line in response.read().decode().split("\n") if line]
