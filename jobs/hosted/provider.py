"""A provider of batches, as the flight loop sees it: what it takes, what can be asked of it, how it answers.

Provider
├── openai.OpenAIBatches         files, metadata, an output file and an error file
└── anthropic.AnthropicBatches   requests in the body, no metadata, one stream of results
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

PREFIX = "gm"
Why = Literal["expired", "canceled"]


class LostReplyError(Exception):
    """Nobody knows whether the provider has done what it was asked: the connection broke, or it failed itself."""


class BusyProviderError(Exception):
    """The provider has not done what it was asked, and wants to be asked later.

    Args:
        after_s: When, as far as it says so.
    """

    def __init__(self, told: str, after_s: float | None = None) -> None:
        self.after_s = after_s
        super().__init__(told)


class RefusedError(Exception):
    """The provider takes a batch not at all: something is wrong with its requests."""


class UnknownBatchError(Exception):
    """The provider knows no batch of this id."""


class NotRunError(Exception):
    """The provider has not run a batch, for what is wrong with the account or the model, and with no request."""


@dataclass(frozen=True)
class Bounds:
    """What a batch may hold.

    Args:
        requests: At most.
        bytes: Of all its request lines.
        tokens: Estimated, of what goes in; None for any number.
    """

    requests: int
    bytes: int
    tokens: int | None = None


@dataclass(frozen=True)
class Seen:
    """A batch as the provider tells of it.

    Args:
        id: The provider's.
        state: `refused` is one that was not run at all, for what is wrong with its requests; `full` likewise, since
            too much is enqueued.
        why: What becomes of requests that an ended one has not answered; None for those that have to be answered.
        done: Requests that are answered, as far as it tells.
        told: Of a refused one, what is wrong.
        files: Where its results are.
    """

    id: str
    state: Literal["running", "ended", "refused", "full"]
    why: Why | None = None
    done: int = 0
    told: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a search for a batch has found.

    Args:
        id: The batch.
        maybe: Batches of which one may be it, which only their results tell.
    """

    id: str | None = None
    maybe: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens as the provider counts them; cached ones are among those of the input."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class Sent:
    """A batch that is to be made, or may have been.

    Args:
        name: Our own name of it, in the provider's metadata where it has such.
        prefix: What its custom ids begin with.
        requests: How many.
        newest: The provider's newest batch before this one; None where there was none.
    """

    name: str
    prefix: str
    requests: int
    newest: str | None


class Provider(Protocol):
    """What a provider of batches can be asked. Whatever is asked may raise the errors above, and `EndpointError`."""

    bounds: Bounds

    def request_line(self, custom_id: str, body: bytes) -> bytes:
        """A line of a request file, without its end."""

    def newest(self) -> str | None:
        """The id of the batch that was made last."""

    def submit(self, file: Path, sent: Sent) -> str:
        """Make a batch of a file of request lines; returns its id."""

    def find(self, sent: Sent, known: frozenset[str]) -> Found:
        """Look for a batch whose id is not known; those of `known` ids are other ones."""

    def has_run(self, batch_id: str, sent: Sent) -> bool:
        """Whether an ended batch is the one that was to be made: one of its results has a custom id of ours.

        Raises:
            LostReplyError: None has, but less than half of its results came.
        """

    def look(self, batch_id: str) -> Seen:
        """How a batch is.

        Raises:
            NotRunError: Nothing of it was run, or will be.
        """

    def cancel(self, batch_id: str) -> None:
        """Have a batch end; what is answered already stays. Nothing happens to one that has ended."""

    def download(self, file: str, to: Path) -> bool:
        """Bring a file of an ended batch's results here, whole; False for one that is gone for good.

        Raises:
            LostReplyError: What came is shorter than the provider says.
        """

    def usage_of(self, reply: Mapping[str, Any]) -> Usage:
        """What a result line says of its tokens."""

    def without_usage(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The same result line with tokens of 0."""

    def tells_no_model(self, reply: Mapping[str, Any]) -> bool:
        """A result line of a request for a model that the provider does not have."""

    def is_unanswered(self, reply: Mapping[str, Any]) -> bool:
        """A result line of a request that was cancelled or has expired."""

    def unanswered(self, custom_id: str, why: Why) -> dict[str, Any]:
        """A result line as the provider itself writes it of a request that has not been run."""

    def refused(self, custom_id: str, told: str) -> dict[str, Any]:
        """A result line of a request that the provider does not take."""


def read_tokens(told: Any, name: str) -> int:
    """A number of a usage, 0 where there is none."""
    value = told.get(name) if isinstance(told, Mapping) else None
    return value if isinstance(value, int) and value > 0 else 0
