"""Anthropic's Message Batches: requests are in the body that makes a batch, results come as one stream."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.hosted.clients import read_problem, read_stream, save_stream, telling_errors
from jobs.hosted.provider import (
    Bounds,
    Found,
    LostReplyError,
    RefusedError,
    Seen,
    Sent,
    UnknownBatchError,
    Usage,
    Why,
    read_tokens,
)
from udfs.hosted.endpoint import Endpoint

# 100,000 and 256 MB are taken; but all of a body is in memory as it is sent.
_BOUNDS = Bounds(requests=20_000, bytes=32_000_000)
_RAW = "X-Stainless-Raw-Response"  # by which the client hands over a response that it has not read


class AnthropicBatches:
    """Batches of one account.

    Args:
        client: The official client.
        endpoint: Where it is.
        model: For messages.
    """

    bounds = _BOUNDS

    def __init__(self, client: Any, endpoint: Endpoint, *, model: str) -> None:
        self._client, self._endpoint, self._model = client, endpoint, model

    def request_line(self, custom_id: str, body: bytes) -> bytes:
        return b'{"custom_id":"%b","params":%b}' % (custom_id.encode(), body)

    def newest(self) -> str | None:
        with self._telling():
            return next((batch.id for batch in self._client.messages.batches.list(limit=1)), None)

    def submit(self, file: Path, sent: Sent) -> str:
        with file.open("rb") as stream:
            requests = [json.loads(line) for line in stream]
        with self._telling():
            made = self._client.with_options(max_retries=0).messages.batches.create(requests=requests)
        return str(made.id)

    def find(self, sent: Sent, known: frozenset[str]) -> Found:
        maybe = []
        with self._telling():
            for batch in self._client.messages.batches.list(limit=100):
                if batch.id == sent.newest:
                    break
                if _requests_of(batch) == sent.requests and batch.id not in known:
                    maybe.append(batch.id)
        return Found(maybe=tuple(maybe))

    def has_run(self, batch_id: str, sent: Sent) -> bool:
        others = 0
        with self._telling(), self._results(batch_id) as response:
            for line in _lines_of(response):
                if (custom_id := _id_of(line)) is None:
                    continue
                if custom_id.startswith(sent.prefix):
                    return True
                others += 1
        if 2 * others < sent.requests:
            raise LostReplyError(f"of the results of {batch_id} {others} of {sent.requests} came")
        return False

    def look(self, batch_id: str) -> Seen:
        with self._telling():
            batch = self._client.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        return Seen(
            batch.id,
            "ended" if batch.processing_status == "ended" else "running",
            done=_requests_of(batch) - counts.processing,
            files=(batch.id,),
        )

    def cancel(self, batch_id: str) -> None:
        with contextlib.suppress(RefusedError, UnknownBatchError), self._telling():
            self._client.messages.batches.cancel(batch_id)

    def download(self, file: str, to: Path) -> bool:
        with contextlib.suppress(UnknownBatchError), self._telling(), self._results(file) as response:
            save_stream(response, to, key=self._client.api_key)
            return True
        return False

    @contextlib.contextmanager
    def _results(self, batch_id: str) -> Iterator[Any]:
        """The results as they are sent: the address that a batch names may be another host's, and is not called."""
        path = f"/v1/messages/batches/{batch_id}/results"
        response: Any = self._client.get(path, cast_to=object, options={"headers": {_RAW: "stream"}})
        with contextlib.closing(response):
            yield response

    def usage_of(self, reply: Mapping[str, Any]) -> Usage:
        told = _message_of(reply).get("usage")
        cached = read_tokens(told, "cache_read_input_tokens")
        made = read_tokens(told, "cache_creation_input_tokens")
        return Usage(read_tokens(told, "input_tokens") + cached + made, read_tokens(told, "output_tokens"), cached)

    def without_usage(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "usage" not in (message := _message_of(reply)):
            return reply
        none = {"input_tokens": 0, "output_tokens": 0}
        return {**reply, "result": {**reply["result"], "message": {**message, "usage": none}}}

    def tells_no_model(self, reply: Mapping[str, Any]) -> bool:
        result = reply.get("result")
        error = result.get("error") if isinstance(result, dict) else None
        return read_problem(error)[0] == "not_found_error"

    def is_unanswered(self, reply: Mapping[str, Any]) -> bool:
        result = reply.get("result")
        return isinstance(result, dict) and result.get("type") in ("expired", "canceled")

    def unanswered(self, custom_id: str, why: Why) -> dict[str, Any]:
        return {"custom_id": custom_id, "result": {"type": why}}

    def refused(self, custom_id: str, told: str) -> dict[str, Any]:
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": told}}
        return {"custom_id": custom_id, "result": {"type": "errored", "error": error}}

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        with telling_errors("anthropic", self._client, self._endpoint, self._model):
            yield


def _lines_of(response: Any) -> Iterator[bytes]:
    rest = b""
    for piece in read_stream(response):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def _id_of(line: bytes) -> str | None:
    """The custom id of a result line; None of what is none."""
    with contextlib.suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and isinstance(told.get("custom_id"), str):
            return str(told["custom_id"])
    return None


def _requests_of(batch: Any) -> int:
    counts = batch.request_counts
    return int(counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired)


def _message_of(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    result = reply.get("result")
    message = result.get("message") if isinstance(result, dict) else None
    return message if isinstance(message, dict) else {}
