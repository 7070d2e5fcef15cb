"""What a provider's batches are going to hold and to cost, by a sample of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.hosted.flight import share_of
from jobs.hosted.money import price_of, read_most_output
from jobs.hosted.provider import Bounds, Usage
from jobs.hosted.services import bounds_of
from jobs.increments.plan import text_of
from jobs.settings import Settings
from udfs.factory import make_ask_udf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

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
        batches: At least; each is a file of requests.
        usd, live_usd: At most, with a batch's discount and without; None where the settings have no prices.
    """

    sampled: int
    requests: int
    input_tokens: int
    most_output: int
    batches: int
    usd: float | None = None
    live_usd: float | None = None

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"about {self.requests:,} requests with {self.input_tokens:,} tokens, answered with at most "
            f"{self.most_output:,}; {self.batches:,} batches or more, a file of requests each; by {self.sampled:,} rows"
        )
        if self.usd is not None and self.live_usd is not None:
            yield f"at most {self.usd:,.4g} USD by the settings' prices, {self.live_usd:,.4g} without the discount"


def forecast_batches(frame: DataFrame, settings: Settings, rows: int) -> Forecast:
    """Ask about some rows, send nothing, and tell what all of them come to.

    Args:
        frame: The rows.
        settings: The job, of a batch engine.
        rows: How many they are.
    """
    from pyspark.sql import functions as F

    drawn = frame.sample(min(1.0, _SPARE * _SAMPLE / rows), seed=_SEED).limit(_SAMPLE) if rows > _SAMPLE else frame
    asked = drawn.select(make_ask_udf(settings.spec())(text_of(drawn, settings)).alias("asked"))
    request = F.explode_outer("asked.requests").alias("request")
    counted = asked.select(F.monotonically_increasing_id().alias("row"), "asked").select("row", request)
    (found,) = counted.agg(
        F.count_distinct("row").alias("rows"),
        F.count("request.id").alias("requests"),
        F.coalesce(F.sum("request.tokens"), F.lit(0)).alias("tokens"),
        F.coalesce(F.sum(F.octet_length("request.line")), F.lit(0)).alias("bytes"),
        F.first("request.line", ignorenulls=True).alias("line"),
    ).collect()
    times = rows / found["rows"] if found["rows"] else 0.0
    requests, tokens, size = (math.ceil(found[name] * times) for name in ("requests", "tokens", "bytes"))
    output = requests * (read_most_output(found["line"].encode()) if found["line"] else 0)
    endpoint: Endpoint = settings.spec().endpoint
    batches = _count_batches(requests, size, tokens, bounds_of(endpoint), share_of(endpoint.max_in_flight_tokens))
    most = Usage(tokens, output)
    prices = [price_of(most, endpoint.price, in_batches=of) for of in (True, False)] if endpoint.price else [None, None]
    return Forecast(found["rows"], requests, tokens, output, batches, *prices)


def _count_batches(requests: int, size: int, tokens: int, bounds: Bounds, share: int | None) -> int:
    by_bytes = (size + requests * _ENVELOPE) / bounds.bytes
    return math.ceil(max(requests / bounds.requests, by_bytes, tokens / share if share else 0))
