"""What a provider has answered, checked line by line and laid out for the rows that wait for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from jobs.hosted.ledger import UNSENT, Asked, AskedLine, Batch, Cut, Ledger, prefix_of
from jobs.hosted.provider import Provider, Usage, Why

_ID = 32  # characters at the end of a custom id


@dataclass
class Replies:
    """Replies to the requests of one batch, as they are read from its files.

    Attributes:
        usage: Of all of them.
        counts: Lines by what they were: `replies`; `malformed`, no JSON of a request; `strange`, of no request of this
            batch; `repeated`, of one that has been answered. Of the replies, `no_model` know no such model.
        left: Requests without a reply.
    """

    provider: Provider
    prefix: str
    left: dict[str, tuple[str, ...]]
    why: Why | None = None
    usage: Usage = field(default_factory=Usage)
    counts: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)

    def read(self, files: Sequence[Path]) -> Iterator[bytes]:
        """Result lines for the rows' buckets, out of a batch's files."""
        for file in files:
            with file.open("rb") as stream:
                for line in stream:
                    yield from self._take(line.strip())

    def fill(self, why: Why) -> Iterator[bytes]:
        """Result lines of the requests that have no reply, since the batch ended before."""
        for id_, buckets in self.left.items():
            yield from lay_out(self.provider.unanswered(self.prefix + id_, why), buckets, self.provider)

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not line:
            return
        try:
            reply = from_json(line)
        except ValueError:
            self.counts["malformed"] += 1
            return
        custom_id = reply.get("custom_id") if isinstance(reply, dict) else None
        if not isinstance(custom_id, str):
            self.counts["malformed"] += 1
            return
        id_ = custom_id[-_ID:]
        if custom_id != self.prefix + id_ or id_ not in self.left:
            self.counts["repeated" if custom_id in self.answered else "strange"] += 1
            return
        self.counts["replies"] += 1
        self.answered.add(custom_id)
        self.usage += self.provider.usage_of(reply)
        self.counts["no_model"] += self.provider.tells_no_model(reply)
        if self.why and self.provider.is_unanswered(reply):
            yield from lay_out(self.provider.unanswered(custom_id, self.why), self.left.pop(id_), self.provider)
        else:
            yield from lay_out(reply, self.left.pop(id_), self.provider, raw=line)


def read_left(ledger: Ledger, asked: Asked, batch: Batch, provider: Provider, *, why: Why | None = None) -> Replies:
    """What a batch is to answer; `why` we have ended it ourselves, where we have."""
    left = {line.id: line.buckets for line in ledger.lines(asked, batch.cut)}
    return Replies(provider, prefix_of(asked, batch.name), left, why)


def lay_out(
    reply: dict[str, Any], buckets: Sequence[str], provider: Provider, *, raw: bytes | None = None
) -> Iterator[bytes]:
    """A reply as result lines, one for each bucket; its tokens count once.

    Args:
        reply: As the provider tells it.
        buckets: Of the rows that wait for it.
        provider: Whose it is.
        raw: The reply as it was written.
    """
    first, *others = buckets
    yield b"%b\t%b\n" % (first.encode(), raw or _dump(reply))
    if others:
        again = _dump(provider.without_usage(reply))
        yield from (b"%b\t%b\n" % (bucket.encode(), again) for bucket in others)


def write_unsent(ledger: Ledger, asked: Asked, cuts: Sequence[Cut], provider: Provider, why: Why) -> int:
    """Replies for requests that are in no batch; returns how many result lines they are."""

    def lines() -> Iterator[bytes]:
        for cut in cuts:
            for line in ledger.lines(asked, cut):
                yield from _unanswered(line, provider, prefix_of(asked, UNSENT), why)

    return ledger.write_results(UNSENT, lines())


def _unanswered(line: AskedLine, provider: Provider, prefix: str, why: Why) -> Iterator[bytes]:
    yield from lay_out(provider.unanswered(prefix + line.id, why), line.buckets, provider)


def _dump(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()
