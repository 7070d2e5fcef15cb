"""What a hosted model is asked about a text, and what it replied: the same for all providers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from udfs.errors import RowError
from udfs.tasks.answers import Told
from udfs.tasks.writing_options import WritingOptions

_BYTES_A_TOKEN = 4
_TOKENS_A_MESSAGE = 4


@dataclass(frozen=True)
class Chat:
    """A chat whose next message is asked for.

    Args:
        messages: Role and text of each.
        way: How it is to be answered.
    """

    messages: tuple[tuple[str, str], ...]
    way: WritingOptions


@dataclass(frozen=True)
class Document:
    """A text whose vector is asked for."""

    text: str
    dimensions: int | None = None


Asked = Chat | Document


class Usage(NamedTuple):
    """Tokens by the provider's own count; those of the cache are among those that were read."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


NOTHING_USED = Usage()


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Args:
        answers: Of a chat, what was written.
        vector: Of a document.
        usage: What it cost, also where it failed.
        error: Why there is neither.
    """

    answers: tuple[Told, ...] = ()
    vector: np.ndarray | None = None
    usage: Usage = NOTHING_USED
    error: RowError | None = None


@dataclass(frozen=True)
class Request:
    """A request as it is sent.

    Args:
        id: 32 hexadecimal digits: identical requests have the same.
        line: Its body as one line of JSON.
        tokens: What it will read, estimated: the service alone can count.
    """

    id: str
    line: str
    tokens: int


def make_request(body: Mapping[str, Any], asked: Asked, *, more_tokens: int = 0) -> Request:
    """A body as it is sent.

    The keys stay in their order: that of a schema is the one in which a model writes them.

    Args:
        body: It.
        asked: What it asks.
        more_tokens: Estimated, of what it holds besides.

    Raises:
        UnicodeEncodeError: It holds half of a surrogate pair.
    """
    line = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(line.encode(), digest_size=16).hexdigest()
    return Request(digest, line, estimate_tokens(asked) + more_tokens)


def estimate_tokens(asked: Asked) -> int:
    """Tokens that a request reads: a quarter of its bytes in UTF-8, and 4 a message.

    That is the services' own rule of thumb for English; other languages differ by up to a half, both ways.
    """
    if isinstance(asked, Document):
        return _tokens_of(asked.text)
    form = asked.way.form
    held = (form.json_schema or "") + "".join(form.choices)
    return sum(_tokens_of(text) + _TOKENS_A_MESSAGE for _, text in asked.messages) + _tokens_of(held)


def estimate_laid_over(body: Mapping[str, Any] | None) -> int:
    """Tokens of what is laid over each request, as instructions and tools."""
    return _tokens_of(json.dumps(body, ensure_ascii=False)) if body else 0


def most_tokens(request: Request, asked: Asked) -> int:
    """What a request may cost at most, by that estimate."""
    return request.tokens + (asked.way.max_new_tokens * asked.way.n if isinstance(asked, Chat) else 0)


def _tokens_of(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN)
