"""What a provider's tokens cost by the list prices of the settings, and how far a job may go."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from jobs.hosted.ledger import Cut
from jobs.hosted.provider import Usage
from udfs.hosted.endpoint import LENGTHS

if TYPE_CHECKING:
    from udfs.hosted.endpoint import Price

_MILLION = 1_000_000
_AT_MOST = 1.5  # times the estimate: so far it may be wrong (see `udfs.hosted.asked.estimate_tokens`)


@dataclass(frozen=True)
class Cost:
    """Money in USD.

    Args:
        usd: What was paid, by list prices.
        live_usd: What the same would have cost without a batch's discount.
        saved_by_dedupe_usd: What identical requests would have cost that were sent once, by their estimated tokens.
        as_of: The day of the prices.
    """

    usd: float
    live_usd: float
    saved_by_dedupe_usd: float
    as_of: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def price_of(usage: Usage, price: Price, *, in_batches: bool) -> float:
    """What tokens cost, in USD."""
    read, written, cached = _rates(price, in_batches=in_batches)
    new = max(0, usage.input_tokens - usage.cached_tokens)
    return (new * read + usage.cached_tokens * cached + usage.output_tokens * written) / _MILLION


def _rates(price: Price, *, in_batches: bool) -> tuple[float, float, float]:
    """USD for a million tokens that are read, written, and read from a cache."""
    kept = 1 - price.batch_discount
    live_read = _live(price.input, price.batch_input, kept)
    live_written = _live(price.output, price.batch_output, kept)
    live_cached = live_read if price.cached_input is None else price.cached_input
    if not in_batches:
        return live_read, live_written, live_cached
    read = price.input * kept if price.batch_input is None else price.batch_input
    written = price.output * kept if price.batch_output is None else price.batch_output
    return read, written, live_cached * (read / live_read if live_read else kept)


def _live(told: float, in_batches: float | None, kept: float) -> float:
    """A price without the discount; where that of batches alone is told, by the discount."""
    return in_batches / kept if not told and in_batches and kept else told


def make_cost(usage: Usage, price: Price, *, in_batches: bool, made_tokens: int = 0, sent_tokens: int = 0) -> Cost:
    """What a run has cost.

    Args:
        usage: Tokens, by the provider.
        price: By the settings.
        in_batches: They were asked in batches.
        made_tokens: Estimated, of all requests.
        sent_tokens: Of those that were sent.
    """
    usd = price_of(usage, price, in_batches=in_batches)
    again = max(0, made_tokens - sent_tokens) / sent_tokens if sent_tokens else 0
    live = price_of(usage, price, in_batches=False)
    return Cost(round(usd, 6), round(live, 6), round(usd * again, 6), price.as_of)


@dataclass(frozen=True)
class Purse:
    """What may be spent.

    Args:
        price: By the settings; None where they have none.
        max_usd: Of all that the output has cost; None for any sum.
        spent_usd: What it has cost before this increment.
    """

    price: Price | None = None
    max_usd: float | None = None
    spent_usd: float = 0.0

    @property
    def most_output(self) -> Callable[[bytes], int]:
        """Tokens that a request's body lets the provider answer with; nobody asks where money is not limited."""
        return read_most_output if self._counts else lambda _: 0

    @property
    def _counts(self) -> bool:
        return self.price is not None and self.max_usd is not None

    def has_for(self, cut: Cut, flying: Sequence[Cut], usage: Usage) -> bool:
        """There is money for one more batch, whatever it and those that fly turn out to cost.

        Args:
            cut: The batch.
            flying: The others that have not ended.
            usage: Of those that have, in this increment.
        """
        if self.price is None or self.max_usd is None:
            return True
        most = sum((Usage(math.ceil(_AT_MOST * c.tokens), c.most_output) for c in (cut, *flying)), Usage())
        return self._spent(usage) + price_of(most, self.price, in_batches=True) <= self.max_usd

    def _spent(self, usage: Usage) -> float:
        return self.spent_usd + (price_of(usage, self.price, in_batches=True) if self.price else 0.0)

    def told(self, usage: Usage) -> str:
        """Why no more is sent."""
        return (
            f"limits.max_usd is {self.max_usd or 0:,.4g} USD, {self._spent(usage):,.4g} USD of it are spent, and the "
            "next batch, however small, might pass it; raise it"
        )


def read_most_output(body: bytes) -> int:
    """Tokens that a request's body lets the provider answer with; 0 where it says none."""
    told = from_json(body)
    most = next((told[name] for name in LENGTHS if isinstance(told.get(name), int)), 0)
    return int(most) * int(told.get("n") or 1)
