"""What the official clients of all providers have in common: how they fail, and how they hand over a file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import EndpointError
from jobs.hosted.provider import (
    BusyProviderError,
    LostReplyError,
    RefusedError,
    UnknownBatchError,
)

RETRIES = 2  # of calls that may be made twice; those that make a batch are looked up before they are made again
_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error")
_CREDIT = "credit balance"  # Anthropic tells an empty account in words alone
_NO_MODEL = ("model_not_found", "not_found_error")
_REFUSALS = (400, 413, 422)
_PIECE = 1 << 20


@contextlib.contextmanager
def telling_errors(sdk: Any, *, name: str, model: str, base_url: str, key_from: str) -> Iterator[None]:
    """Turn what an official client raises into the errors of `jobs.hosted.provider`.

    Args:
        sdk: The client's module.
        name: Of the provider, for people.
        model, base_url: As the settings say them.
        key_from: Where the key comes from.
    """
    try:
        yield
    except sdk.APIStatusError as error:
        raise _of_status(error, name=name, model=model, base_url=base_url, key_from=key_from) from None
    except sdk.APIError as error:  # no connection, no time, no JSON
        raise LostReplyError(f"{name} at {base_url} does not answer: {type(error).__name__}") from None


def _of_status(error: Any, *, name: str, model: str, base_url: str, key_from: str) -> Exception:
    status, (code, told) = error.status_code, read_problem(error.body)
    said = f" ({told})" if told else ""
    if status == 402 or code in _MONEY or _CREDIT in told.lower():
        return EndpointError(f"{name} takes no more of this account: no money or no quota is left{said}")
    if status == 401:  # what it tells may quote a part of the key
        return EndpointError(f"{name} at {base_url} refuses the key of {key_from} (401); put a valid one there")
    if status == 403:
        return EndpointError(f"{name} at {base_url} forbids it to the key of {key_from} (403){said}")
    if 300 <= status < 400:
        return EndpointError(f"{base_url} redirects ({status}), which is not followed; name the address it leads to")
    if code in _NO_MODEL and "model" in told.lower():
        return EndpointError(f"{name} has no model {model!r}, or not for this account{said}; see score.model")
    if status == 404:
        return UnknownBatchError(told or "not found")
    if status == 429:
        return BusyProviderError(f"{name} wants fewer calls (429){said}", _retry_after(error))
    if status in _REFUSALS:
        return RefusedError(told or f"refused with status {status}")
    if status >= 500 or status in (408, 409):
        return LostReplyError(f"{name} fails ({status}){said}")
    return EndpointError(f"{name} at {base_url} answers with status {status}{said}")


def read_problem(body: Any) -> tuple[str, str]:
    """Code and message of an error's body, whatever its shape is."""
    told = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(told, dict):
        return "", str(told)
    return str(told.get("code") or told.get("type") or ""), str(told.get("message") or "")


def _retry_after(error: Any) -> float | None:
    """Seconds that an answer asks to wait; None where it does not say them."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(error.response.headers.get("retry-after")))
    return None


def read_stream(response: Any) -> Iterator[bytes]:
    """Pieces of a streamed response.

    Raises:
        LostReplyError: The connection broke.
    """
    pieces = response.iter_bytes(_PIECE)
    while True:
        try:
            piece = next(pieces, None)
        except Exception as error:  # noqa: BLE001 - of whatever library the client reads by
            raise LostReplyError(f"a download broke off: {type(error).__name__}") from None
        if piece is None:
            return
        yield piece


def save_stream(response: Any, file: Path, *, size: int | None = None) -> Path:
    """Write a streamed response to a file.

    Raises:
        LostReplyError: It is shorter than it should be, or ends within a line that is no whole JSON.
    """
    last = b"\n"
    with file.open("wb") as stream:
        for piece in read_stream(response):
            stream.write(piece)
            last = (last + piece)[-1:]
    held = file.stat().st_size
    if size is not None and held != size:
        raise LostReplyError(f"a download ended after {held:,} of {size:,} bytes")
    if last != b"\n" and held and not _ends_whole(file):
        raise LostReplyError("a download ended within a line")
    return file


def _ends_whole(file: Path) -> bool:
    """The last line of a file is JSON."""
    with file.open("rb") as stream:
        for line in stream:  # noqa: B007 - the last one is looked at
            pass
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
