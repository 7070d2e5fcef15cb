"""A call and what is replied to it, apart from sockets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.provider.answers import digest


@dataclass(frozen=True)
class Call:
    """One call of a client; `upload` is the file of a form."""

    method: str
    path: tuple[str, ...]  # without "v1"
    query: dict[str, str]
    headers: dict[str, str]  # names in small letters
    raw: bytes
    form: dict[str, str]
    upload: Path | None
    filename: str
    base: str  # the server's address, without a slash

    def json(self) -> dict[str, Any]:
        try:
            body = json.loads(self.raw or b"{}")
        except ValueError:
            raise Refusal(400, "We could not parse the JSON body of your request.") from None
        if not isinstance(body, dict):
            raise Refusal(400, "The body of a request is a JSON object.")
        return body


@dataclass(frozen=True)
class Reply:
    """A status with JSON, or with a file's bytes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """The provider does not do what was asked; each dialect words it as its provider does."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        kind: str = "",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.kind, self.code, self.param = status, text, kind, code, param
        self.headers = headers or {}


def are_messages(value: Any) -> bool:
    """Whether a value is messages, of which there is one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and m.get("role") for m in value)


def befall(fault: str, body: dict[str, Any]) -> None:
    """Refuse a request for the fault that it has drawn, if that is one of refusals."""
    if fault == "errored":
        status = (500, 503, 429)[digest(body)[0] % 3]
        raise Refusal(status, "The server had an error while it processed this request.")
    if fault == "no_status":
        raise Refusal(0, "")
    if fault == "bad_request":
        raise Refusal(400, "This request was not understood.", code="invalid_value")
    if fault == "context_overflow":
        text = "prompt is too long: this model's maximum context length is 1000 tokens; 1001 were asked."
        raise Refusal(400, text, code="context_length_exceeded", param="messages")


def page_limit(call: Call, *, usual: int, most: int) -> int:
    """How many rows of a list a client asks for."""
    asked = call.query.get("limit", str(usual))
    if not asked.isdecimal() or not 1 <= int(asked) <= most:
        raise Refusal(400, f"limit must be from 1 to {most}", param="limit")
    return int(asked)
