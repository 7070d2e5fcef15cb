"""OpenAI's Batch API: a file of requests is uploaded, a batch made of it, answers and failures come as files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.hosted.clients import read_problem, save_stream, telling_errors
from jobs.hosted.provider import (
    Bounds,
    Found,
    NotRunError,
    RefusedError,
    Seen,
    Sent,
    UnknownBatchError,
    Usage,
    Why,
    read_tokens,
)
from udfs.hosted.clients import NO_MODEL, NO_MONEY
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.keys import without_key

_BOUNDS = Bounds(requests=50_000, bytes=190_000_000)  # 200 MB are taken
_MARK = "gristmill"
_FULL = "token_limit_exceeded"
_STATES = {"failed": "refused", "completed": "ended", "expired": "ended", "cancelled": "ended"}
_WHY: dict[str, Why] = {"expired": "expired", "cancelled": "canceled"}
_CODES = {"expired": "batch_expired", "canceled": "batch_cancelled"}


class OpenAIBatches:
    """Batches of one endpoint and model.

    Args:
        client: The official client.
        endpoint: Where it is.
        url: What all requests are for, as `/v1/chat/completions`.
        model: For messages.
    """

    bounds = _BOUNDS

    def __init__(self, client: Any, endpoint: Endpoint, *, url: str, model: str) -> None:
        self._client, self._endpoint, self._url, self._model = client, endpoint, url, model

    def request_line(self, custom_id: str, body: bytes) -> bytes:
        about = b'{"custom_id":"%b","method":"POST","url":"%b"' % (custom_id.encode(), self._url.encode())
        return b'%b,"body":%b}' % (about, body)

    def newest(self) -> str | None:
        with self._telling():
            return next((batch.id for batch in self._client.batches.list(limit=1)), None)

    def submit(self, file: Path, sent: Sent) -> str:
        with self._telling(), file.open("rb") as stream:  # by its path the client would read it as a whole
            uploaded = self._client.files.create(file=(file.name, stream), purpose="batch")
        with self._telling():
            made = self._client.with_options(max_retries=0).batches.create(
                input_file_id=uploaded.id,
                endpoint=self._url,
                completion_window="24h",
                metadata={_MARK: sent.name, "requests": str(sent.requests)},
            )
        return str(made.id)

    def find(self, sent: Sent, known: frozenset[str]) -> Found:
        with self._telling():
            for batch in self._client.batches.list(limit=100):
                if batch.id == sent.newest:
                    break
                if (batch.metadata or {}).get(_MARK) == sent.name:
                    return Found(batch.id)
        return Found()

    def has_run(self, batch_id: str, sent: Sent) -> bool:
        raise NotImplementedError("a batch is found by its metadata")

    def look(self, batch_id: str) -> Seen:
        with self._telling():
            batch = self._client.batches.retrieve(batch_id)
        counts = batch.request_counts
        problems = (batch.errors and batch.errors.data) or []
        state = _STATES.get(batch.status, "running")
        if state == "refused":
            self._check_refusal(problems)
            state = "full" if any(problem.code == _FULL for problem in problems) else state
        return Seen(
            batch.id,
            state,  # type: ignore[arg-type]
            why=_WHY.get(batch.status),
            done=(counts.completed + counts.failed) if counts else 0,
            told="; ".join(dict.fromkeys(map(self._read_told, problems[:3]))),
            files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
        )

    def _check_refusal(self, problems: Sequence[Any]) -> None:
        """A model that is not there, or an account without money, is no fault of the requests.

        Raises:
            NotRunError: It is so.
        """
        for problem in problems:
            told = f"OpenAI has refused a batch: {self._read_told(problem)}"
            if problem.code in NO_MODEL:
                raise NotRunError(f"{told}; see score.model")
            if problem.code in NO_MONEY:
                raise NotRunError(f"{told}; no money or no quota is left; add some, and run the same command again")

    def _read_told(self, problem: Any) -> str:
        return without_key(str(problem.message or problem.code), self._client.api_key)

    def cancel(self, batch_id: str) -> None:
        with contextlib.suppress(RefusedError, UnknownBatchError), self._telling():
            self._client.batches.cancel(batch_id)

    def download(self, file: str, to: Path) -> bool:
        with contextlib.suppress(UnknownBatchError), self._telling():
            size = self._client.files.retrieve(file).bytes
            with self._client.files.with_streaming_response.content(file) as response:
                save_stream(response, to, key=self._client.api_key, size=size)
                return True
        return False

    def usage_of(self, reply: Mapping[str, Any]) -> Usage:
        told = _body_of(reply).get("usage")
        details = told.get("prompt_tokens_details") if isinstance(told, dict) else None
        return Usage(
            read_tokens(told, "prompt_tokens"),
            read_tokens(told, "completion_tokens"),
            read_tokens(details, "cached_tokens"),
        )

    def without_usage(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "usage" not in (body := _body_of(reply)):
            return reply
        none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return {**reply, "response": {**reply["response"], "body": {**body, "usage": none}}}

    def tells_no_model(self, reply: Mapping[str, Any]) -> bool:
        return read_problem(_body_of(reply))[0] in NO_MODEL

    def is_unanswered(self, reply: Mapping[str, Any]) -> bool:
        error = reply.get("error")
        return isinstance(error, dict) and error.get("code") in _CODES.values()

    def unanswered(self, custom_id: str, why: Why) -> dict[str, Any]:
        error = {"code": _CODES[why], "message": f"This request was not run: {why}."}
        return {"custom_id": custom_id, "response": None, "error": error}

    def refused(self, custom_id: str, told: str) -> dict[str, Any]:
        error = {"message": told, "type": "invalid_request_error", "param": None, "code": None}
        return {"custom_id": custom_id, "response": {"status_code": 400, "body": {"error": error}}, "error": None}

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        with telling_errors("openai", self._client, self._endpoint, self._model):
            yield


def _body_of(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    response = reply.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return body if isinstance(body, dict) else {}
