"""What goes wrong at the provider, by seed, and the limits and the pace that it keeps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the provider takes. Tokens are words of prompts; those of embeddings count too."""

    requests: int = 50_000  # of a batch; Anthropic's own is 100,000
    bytes: int = 200_000_000  # of a batch's file
    embedding_inputs: int = 50_000  # of a batch
    enqueued_tokens: float = math.inf  # of the batches of a model that are not done
    context_tokens: float = math.inf  # of one request
    live_requests: float = math.inf  # in `live_window_s`
    live_tokens: float = math.inf  # in `live_window_s`
    live_at_once: float = math.inf
    live_window_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When a batch is done: it was looked at more than `polls` times, and `seconds` have gone by."""

    polls: float = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities from 0 to 1, and the seed that draws them.

    What befalls a call depends on the seed and how often its kind was called (a live call's: its body, too), a batch
    on how many were made before it, a request on its body and how often it was asked. A word of `words` in a
    request's text brings it the fault of that name.
    """

    seed: int = 0
    at_most_a_row: int = 3  # then a call, or a request, goes well
    words: Mapping[str, str] = field(default_factory=dict)

    # of a call
    slow: float = 0
    slow_s: float = 0.05
    server_error: float = 0  # 500, 502 with a page of HTML, 503; Anthropic's 529
    rate_limit: float = 0  # 429 with its headers
    retry_after_s: float = 0.05
    retry_after_as_date: bool = False
    conflict: float = 0  # 409, of what is posted
    dropped: float = 0  # hangs up before it does anything
    lost_reply: float = 0  # does what was asked, and hangs up; of what is posted
    restart: float = 0  # hangs up on everyone
    listed_after_s: float = 0  # no probability: a batch is in the list only then
    truncated_download: float = 0  # hangs up in a file
    short_download: float = 0  # a reply in good order, of a file that has lost its end
    no_money: float = 0  # of what is posted; each time anew
    forbidden: float = 0  # 403; each time anew

    # of a batch
    expired: float = 0  # part-way: some of its requests are answered
    out_of_order: float = 0
    fail_all: float = 0
    hidden_errors: float = 0  # OpenAI: `completed`, none failed by its counts, and errors in the file
    lying_counts: float = 0
    null_ids: float = 0  # OpenAI: the error file is not named
    empty_ids: float = 0  # OpenAI: "" for no file
    no_money_left: float = 0  # OpenAI: fails as a whole
    foreign_lines: float = 0  # results of somebody else among ours

    # of a request; "rejected" lets its whole batch fail, by its line, or without for `unnamed` of the batches
    rejected: float = 0
    unnamed: float = 0
    errored: float = 0  # 500, 503 or 429 in its line
    bad_request: float = 0  # 400 in its line
    context_overflow: float = 0
    no_status: float = 0  # status_code 0; Anthropic: errored
    canceled: float = 0  # that nobody has asked to cancel
    malformed: float = 0
    missing: float = 0
    repeated: float = 0  # its line comes twice
    refusal: float = 0
    content_filter: float = 0  # Anthropic: a refusal
    length: float = 0

    @classmethod
    def storm(cls, seed: int, share: float = 0.05, **more: Any) -> Faults:
        """Everything that a run must live through, each with probability `share`."""
        others = {"listed_after_s", "no_money", "forbidden", "no_money_left", "rejected", "unnamed"}
        chances = {f.name: share for f in fields(cls) if f.type == "float" and f.default == 0 and f.name not in others}
        return cls(seed=seed, **{**chances, **more})

    def share(self, *key: Any) -> float:
        """A number from 0 to below 1 that the seed and a key draw."""
        drawn = hashlib.blake2b(repr((self.seed, key)).encode(), digest_size=8).digest()
        return int.from_bytes(drawn) / 2**64

    def happens(self, name: str, *key: Any) -> bool:
        chance = getattr(self, name)
        return bool(chance) and self.share(name, *key) < chance

    def first(self, names: Sequence[str], *key: Any) -> str:
        """The first of some faults that happens; "" for none."""
        return next((name for name in names if self.happens(name, *key)), "")


OF_REQUESTS = (
    *("errored", "bad_request", "context_overflow", "no_status", "canceled", "malformed", "missing", "repeated"),
    *("refusal", "content_filter", "length"),
)
OF_LIVE_CALLS = ("errored", "bad_request", "context_overflow", "refusal", "content_filter", "length")
HARMLESS = frozenset({"", "repeated", "length"})  # a good answer comes all the same
