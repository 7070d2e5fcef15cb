"""What a provider is going to be asked, and what it costs, by a sample of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.hosted.flight import share_of
from jobs.hosted.money import price_of
from jobs.hosted.provider import Bounds, Usage
from jobs.hosted.services import bounds_of
from jobs.increments.plan import text_of
from jobs.settings import Settings
from udfs.factory import make_ask_udf
from udfs.hosted.endpoint import LENGTHS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from udfs.hosted.endpoint import Endpoint

_SAMPLE, _SPARE, _SEED = 1000, 1.3, 7  # rows; Spark draws about as many as it is asked for
_ENVELOPE = 120  # bytes that a request line has besides its body


@dataclass(frozen=True)
class Forecast:
    """What all rows ask, if they are like the sample; identical requests are sent once, and cost less than that.

    Args:
        sampled: Rows that it is made of.
        requests, input_tokens: Of all rows, the tokens estimated.
        most_output: Tokens that they may be answered with at most.
        batches: At least; each is a file of requests. None where requests are asked live.
        usd, live_usd: At most, with a batch's discount and without; None where the settings have no prices.
        max_usd: What may be spent; None for any sum.
    """

    sampled: int
    requests: int
    input_tokens: int
    most_output: int
    batches: int | None
    usd: float | None = None
    live_usd: float | None = None
    max_usd: float | None = None

    def lines(self) -> Iterator[str]:
        """For people."""
        files = "" if self.batches is None else f"{self.batches:,} batches or more, a file of requests each; "
        yield (
            f"about {self.requests:,} requests with {self.input_tokens:,} tokens, answered with at most "
            f"{self.most_output:,}; {files}by {self.sampled:,} rows"
        )
        if self.usd is None or self.live_usd is None:
            return
        live = "" if self.batches is None else f", {self.live_usd:,.4g} without the discount"
        yield f"at most {self.usd:,.4g} USD by the settings' prices{live}"
        if self.max_usd is not None and self.usd > self.max_usd:
            yield (
                f"limits.max_usd is {self.max_usd:,.4g} USD: a batch that might pass it is not sent, and its rows are "
                "left over"
            )


def forecast(frame: DataFrame, settings: Settings, rows: int) -> Forecast:
    """Ask about some rows, send nothing, and tell what all of them come to.

    Args:
        frame: The rows.
        settings: The job, of a hosted model.
        rows: How many they are.
    """
    from pyspark.sql import functions as F

    drawn = frame.sample(min(1.0, _SPARE * _SAMPLE / rows), seed=_SEED).limit(_SAMPLE) if rows > _SAMPLE else frame
    asked = drawn.select(make_ask_udf(settings.spec())(text_of(drawn, settings)).alias("asked"))
    request = F.explode_outer("asked.requests").alias("request")
    each = asked.select(F.monotonically_increasing_id().alias("row"), "asked").select("row", request)
    (found,) = each.agg(
        F.count_distinct("row").alias("rows"),
        F.count("request.id").alias("requests"),
        F.coalesce(F.sum("request.tokens"), F.lit(0)).alias("tokens"),
        F.coalesce(F.sum(F.octet_length("request.line")), F.lit(0)).alias("bytes"),
        F.coalesce(F.sum(_most_output()), F.lit(0)).alias("output"),
    ).collect()
    times = rows / found["rows"] if found["rows"] else 0.0
    sums = ("requests", "tokens", "bytes", "output")
    requests, tokens, size, output = (math.ceil(found[name] * times) for name in sums)
    endpoint: Endpoint = settings.spec().endpoint
    batches, own = None, endpoint.in_batches
    if own:
        batches = _count_batches(requests, size, tokens, bounds_of(endpoint), share_of(endpoint.max_in_flight_tokens))
    most = Usage(tokens, output)
    usd = price_of(most, endpoint.price, in_batches=own) if endpoint.price else None
    live_usd = price_of(most, endpoint.price, in_batches=False) if endpoint.price else None
    return Forecast(found["rows"], requests, tokens, output, batches, usd, live_usd, settings.limits.max_usd)


def _most_output() -> Column:
    """Tokens that a request lets the provider answer with, as `jobs.hosted.money.read_most_output`."""
    from pyspark.sql import functions as F

    *longest, n = (F.get_json_object("request.line", f"$.{name}").cast("long") for name in (*LENGTHS, "n"))
    return F.coalesce(*longest, F.lit(0)) * F.coalesce(n, F.lit(1))


def _count_batches(requests: int, size: int, tokens: int, bounds: Bounds, share: int | None) -> int:
    by_bytes = (size + requests * _ENVELOPE) / bounds.bytes
    return math.ceil(max(requests / bounds.requests, by_bytes, tokens / share if share else 0))
