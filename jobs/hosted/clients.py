"""What the official clients of all providers have in common: how they fail, and how they hand over a file."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import EndpointError
from jobs.hosted.provider import BusyProviderError, LostReplyError, RefusedError, UnknownBatchError
from udfs.hosted.clients import NO_MODEL, cause_of, explain_status
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.keys import HIDDEN, without_key
from udfs.hosted.pacing import read_retry_after

_REFUSALS = (400, 413, 422)
_PIECE = 1 << 20
_LEAST_KEY = 16  # characters


@contextlib.contextmanager
def telling_errors(sdk: str, client: Any, endpoint: Endpoint, model: str) -> Iterator[None]:
    """Turn what an official client raises into the errors of `jobs.hosted.provider`.

    Args:
        sdk: The client's package.
        client: Whose key is in no message, whatever the provider quotes.
        endpoint, model: Who is asked, by what name, for messages.
    """
    package: Any = importlib.import_module(sdk)
    try:
        yield
    except package.APIStatusError as error:
        raise _of_status(error, client.api_key, endpoint, model) from None
    except package.APIError as error:  # no connection, no time, no JSON
        if (ours := cause_of(error)) is not None:
            raise EndpointError(ours.message) from None
        raise LostReplyError(f"{endpoint.url} does not answer: {type(error).__name__}") from None
    except (AttributeError, ValueError):  # a page of HTML, say, with a status that promises a reply
        raise LostReplyError(f"{endpoint.url} answers with what is no reply of a provider") from None


def _of_status(error: Any, key: str | None, endpoint: Endpoint, model: str) -> Exception:
    status, (code, told) = error.status_code, read_problem(error.body)
    told = without_key(told, key)
    if status == 404 and code not in NO_MODEL:
        return UnknownBatchError(told or "not found")
    if (ours := explain_status(status, error.body, endpoint, model)) is not None:
        return EndpointError(ours.message)
    if status == 429:
        after_s = read_retry_after(error.response.headers)
        return BusyProviderError(f"{endpoint.url} wants fewer calls (HTTP 429)", after_s)
    if status in _REFUSALS:
        return RefusedError(told or f"refused with HTTP {status}")
    if status >= 500 or status in (408, 409):
        return LostReplyError(f"{endpoint.url} fails (HTTP {status})")
    return EndpointError(f"{endpoint.url} answers with HTTP {status}: {told}")


def read_problem(body: Any) -> tuple[str, str]:
    """Code and message of an error's body, whatever its shape is."""
    told = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(told, dict):
        return "", str(told)
    return str(told.get("code") or told.get("type") or ""), str(told.get("message") or "")


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


def save_stream(response: Any, file: Path, *, key: str | None, size: int | None = None) -> Path:
    """Write a streamed response to a file, without the key that it may quote; a short one is a placeholder, and a word.

    Raises:
        LostReplyError: It is shorter than it should be, or ends within a line that is no whole JSON.
    """
    came, last = 0, b"\n"
    with file.open("wb") as stream:
        secret = key.encode() if key and len(key) >= _LEAST_KEY else b""
        for piece in _leave_out(read_stream(response), secret):
            came, last = came + piece.came, (last + piece.left)[-1:]
            stream.write(piece.left)
    if size is not None and came != size:
        raise LostReplyError(f"a download ended after {came:,} of {size:,} bytes")
    if last != b"\n" and came and not _ends_whole(file):
        raise LostReplyError("a download ended within a line")
    return file


class _Piece(NamedTuple):
    """Of a stream: bytes that came, and what is left of them."""

    came: int
    left: bytes


def _leave_out(pieces: Iterable[bytes], key: bytes) -> Iterator[_Piece]:
    """A stream without a key, wherever its pieces part it."""
    rest, kept = b"", max(0, len(key) - 1)
    for piece in pieces:
        whole = (rest + piece).replace(key, HIDDEN.encode()) if key else piece
        cut = max(0, len(whole) - kept)
        rest = whole[cut:]
        yield _Piece(len(piece), whole[:cut])
    yield _Piece(0, rest)


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
