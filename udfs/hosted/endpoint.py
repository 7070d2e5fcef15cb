"""Where a hosted model is asked, and how gently; no key is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import date
from typing import Any, Literal
from urllib.parse import urlsplit

from udfs.errors import SpecError
from udfs.spec import find_wrong_values, option

HostedEngine = Literal["openai-batch", "anthropic-batch", "openai-compatible"]
HOSTED: tuple[HostedEngine, ...] = ("openai-batch", "anthropic-batch", "openai-compatible")
BATCHES = ("openai-batch", "anthropic-batch")
_URLS = {"openai-batch": "https://api.openai.com/v1", "anthropic-batch": "https://api.anthropic.com"}
_KEYS = {"openai-batch": "OPENAI_API_KEY", "anthropic-batch": "ANTHROPIC_API_KEY"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_OURS = {"model", "messages", "input", "stream"}
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # of an answer, as providers call it
_OF_BATCHES = {"max_in_flight_tokens", "max_in_flight_batches", "poll_s"}
_OF_LIVE_CALLS = {"max_in_flight_requests", "requests_per_minute", "tokens_per_minute", "max_retries"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = re.compile(r"\S+")  # urlsplit forgives spaces and line breaks, a client does not
_SECRET = re.compile(r"[^/\s]+/[^/\s]+")


def read_day(value: Any) -> Any:
    """A day as text, which YAML reads as a date."""
    return value.isoformat() if isinstance(value, date) else value


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a provider's list says, in USD for a million tokens."""

    input: float = option(0.0, "Of tokens that the model reads; this or `batch_input` has to be told.", least=0)
    output: float = option(
        0.0,
        "Of tokens that it writes, thoughts among them; this or `batch_output` has to be told, but for embeddings.",
        least=0,
    )
    cached_input: float | None = option(
        None, "Of tokens read that the provider had computed before; without it, as `input`.", least=0
    )
    batch_discount: float = option(
        0.5,
        "What a batch engine takes off, 0 to 1; `batch_input` and `batch_output` say it one by one.",
        least=0,
    )
    batch_input: float | None = option(None, "Of tokens that the model reads in a batch.", least=0)
    batch_output: float | None = option(None, "Of tokens that it writes in a batch.", least=0)
    as_of: str | None = option(
        None, "The day of these prices, as `2026-11-27`; it stands in the report.", check=read_day
    )

    def find_problems(self) -> Iterator[str]:
        """What of it cannot be meant."""
        yield from find_wrong_values(self)
        if self.batch_discount > 1:
            yield f"batch_discount is {self.batch_discount}; it must be at most 1, as 0.5 for half the price"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a hosted model is asked, and how gently.

    A field decides answers where `option` says so: others may change from run to run.
    """

    engine: HostedEngine
    base_url: str | None = option(
        None,
        "Where the provider is, as its official client takes it; `openai-compatible` needs it, as "
        "`http://127.0.0.1:8000/v1`. It is https, but for this machine's own addresses.",
    )
    api_key_env: str | None = option(
        None,
        "The environment variable that holds the key: of the driver for the batch engines, of each executor for "
        "`openai-compatible`. Without it `OPENAI_API_KEY` or `ANTHROPIC_API_KEY`, which go to their providers alone; "
        "`openai-compatible` sends no key then.",
        decides=False,
    )
    api_key_secret: str | None = option(
        None,
        "In a variable's place a secret of Databricks, as `scope/key`, for the batch engines.",
        decides=False,
    )
    organization: str | None = option(None, "OpenAI's organization, where a key belongs to several.", decides=False)
    body: dict[str, Any] | None = option(
        None,
        "What is laid over each request, as the provider calls it, key by key, as `{reasoning_effort: low}`; null "
        "takes a key out, as `{temperature: null}` for a model that takes none; without its `response_format`, or "
        "Anthropic's `output_config`, the prompt says what an answer has to be.",
    )
    max_in_flight_tokens: int | None = option(
        None,
        "Of the batch engines: estimated tokens in batches that have not ended; OpenAI limits them by model and tier.",
        least=1,
        decides=False,
    )
    max_in_flight_batches: int = option(8, "Of the batch engines: batches that have not ended.", least=1, decides=False)
    poll_s: float = option(
        30.0,
        "Of the batch engines: seconds between two looks at them, at first; they grow to ten times.",
        least=0,
        decides=False,
    )
    max_in_flight_requests: int = option(
        64, "Of `openai-compatible`: requests that run at once, over the whole job.", least=1, decides=False
    )
    requests_per_minute: int | None = option(
        None, "Of `openai-compatible`: requests that begin in a minute, over the whole job.", least=1, decides=False
    )
    tokens_per_minute: int | None = option(
        None,
        "Of `openai-compatible`: tokens of a minute, over the whole job, as they are estimated: those of a request and "
        "its `max_new_tokens`.",
        least=1,
        decides=False,
    )
    max_retries: int = option(
        6,
        "Of `openai-compatible`: how often a request is repeated that failed with 408, 409, 429 or 5xx, or got no "
        "answer, after 1, 2, 4, … s or what `Retry-After` says.",
        least=0,
        decides=False,
    )
    timeout_s: float = option(600.0, "A request that takes longer has failed.", least=1, decides=False)
    price: Price | None = option(
        None,
        "The provider's list prices, of which the report makes costs; `limits.max_usd` needs them.",
        decides=False,
    )

    workers: int = field(default=1, metadata={"decides": False})

    def __post_init__(self) -> None:
        if problems := list(self._find_problems()):
            raise SpecError("; ".join(problems))

    @property
    def in_batches(self) -> bool:
        """It is a batch API, which the driver asks; else each executor asks live."""
        return self.engine in BATCHES

    @property
    def url(self) -> str:
        """Where it is, the provider's own address where none is told."""
        return (self.base_url or _URLS[self.engine]).rstrip("/")

    @property
    def key_env(self) -> str | None:
        """The environment variable that holds the key; None where no key is sent, or a secret holds it."""
        return None if self.api_key_secret else self.api_key_env or _KEYS.get(self.engine)

    @property
    def is_loopback(self) -> bool:
        """It is a server on this machine."""
        return urlsplit(self.url).hostname in _LOOPBACK

    @property
    def host(self) -> str:
        """Host and port, as an answer tells who made it."""
        told = urlsplit(self.url)
        named = (told.hostname or "").replace(":", ".")  # a colon parts host and port, also in an answer's `engine`
        return f"{named}:{told.port or (443 if told.scheme == 'https' else 80)}"

    def decides_answers(self) -> dict[str, Any]:
        """What of it decides a row's answer, ready for JSON."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("decides", True)}
        return told | {"base_url": self.url}

    @property
    def unread(self) -> list[str]:
        """Fields that are told and that this engine does not read."""
        others = _OF_LIVE_CALLS if self.in_batches else _OF_BATCHES
        if self.engine == "anthropic-batch":
            others = others | {"organization"}
        return [f.name for f in fields(self) if f.name in others and getattr(self, f.name) != f.default]

    def share(self, workers: int) -> Endpoint:
        """The same for one of several workers that ask at once, so that they keep to the limits together."""
        return replace(self, workers=max(1, workers))

    def _find_problems(self) -> Iterator[str]:
        yield from (f"endpoint.{problem}" for problem in find_wrong_values(self))
        if self.price is not None:
            yield from (f"endpoint.price.{problem}" for problem in self.price.find_problems())
        yield from self._find_problems_of_url()
        if self.api_key_env is not None and not _NAME.fullmatch(self.api_key_env):
            yield "endpoint.api_key_env is the name of an environment variable, as OPENAI_API_KEY, and never the key"
        if self.api_key_secret is not None:
            if not _SECRET.fullmatch(self.api_key_secret):
                yield "endpoint.api_key_secret names a secret of Databricks as scope/key, and is never the key"
            if self.api_key_env is not None:
                yield "endpoint.api_key_env and endpoint.api_key_secret are two places of one key; give one"
            if not self.in_batches:
                yield (
                    "endpoint.api_key_secret is read on the driver, and executors call openai-compatible; set a "
                    "variable of the cluster to {{secrets/scope/key}}, and name it as endpoint.api_key_env"
                )
        if isinstance(self.body, dict) and (taken := sorted(_OURS & self.body.keys())):
            yield f"endpoint.body holds {', '.join(taken)}, which gristmill writes itself"

    def _find_problems_of_url(self) -> Iterator[str]:
        if self.base_url is None:
            if self.engine not in _URLS:
                yield f"endpoint.base_url is missing: {self.engine} has no address of its own, as http://127.0.0.1:8000/v1"
            return
        try:
            told = urlsplit(self.base_url)
            is_address = told.scheme in ("http", "https") and bool(told.hostname) and (told.port or 1) > 0
        except ValueError:  # of a port that is no number, of a bracket alone
            is_address = False
        if not is_address or not _URL.fullmatch(self.base_url):
            yield "endpoint.base_url is no https address"
        elif told.username or told.password or told.query or told.fragment:
            yield "endpoint.base_url holds a user, a query or a fragment; the key is named as endpoint.api_key_env"
        elif told.scheme == "http" and told.hostname not in _LOOPBACK:
            yield f"endpoint.base_url is http://{told.hostname}, where anybody on the way reads the key; take https"
        elif self.engine in _KEYS and self.api_key_env is None and self.api_key_secret is None and not self._is_own():
            yield (
                f"endpoint.base_url is not {_URLS[self.engine]}; name the key that goes there as endpoint.api_key_env, "
                f"since {_KEYS[self.engine]} goes to its provider alone"
            )

    def _is_own(self) -> bool:
        return urlsplit(self.url).hostname == urlsplit(_URLS[self.engine]).hostname
