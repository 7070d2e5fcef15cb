"""Costs by list prices, and the limit on them."""

from __future__ import annotations

import pytest

from jobs.hosted.ledger import START, Cut
from jobs.hosted.money import Purse, make_cost, price_of, read_most_output
from jobs.hosted.provider import Usage
from udfs.hosted.endpoint import Price

LIST = Price(input=2, output=8, cached_input=0.5)
ONE = 1_000_000


@pytest.mark.parametrize(
    ("usage", "price", "live", "batch"),
    [
        (Usage(ONE, 0, 0), LIST, 2, 1),
        (Usage(0, ONE, 0), LIST, 8, 4),
        (Usage(ONE, 0, ONE), LIST, 0.5, 0.25),
        (Usage(ONE, 0, ONE // 2), LIST, 1.25, 0.625),
        (Usage(ONE, 0, ONE), Price(input=2), 2, 1),  # a cache that is not told costs as much
        (Usage(ONE, ONE, 0), Price(input=2, output=8, batch_discount=0), 10, 10),
        (Usage(ONE, ONE, 0), Price(input=2, output=8, batch_input=0.2, batch_output=0.4), 10, 0.6),
        (Usage(ONE, ONE, 0), Price(batch_input=0.2, batch_output=0.4), 1.2, 0.6),  # by the usual discount
        (Usage(ONE, 0, ONE), Price(batch_input=0.2), 0.4, 0.2),
        (Usage(ONE, 0, ONE), Price(batch_input=0.2, cached_input=0.1), 0.1, 0.05),
        (Usage(ONE, ONE, 0), Price(batch_input=0.2, batch_output=0.4, batch_discount=1), 0, 0.6),
        (Usage(0, 0, 0), LIST, 0, 0),
    ],
)
def test_tokens_cost_what_the_list_says(usage: Usage, price: Price, live: float, batch: float) -> None:
    assert price_of(usage, price, in_batches=False) == pytest.approx(live)
    assert price_of(usage, price, in_batches=True) == pytest.approx(batch)


def test_what_identical_requests_save_is_told_by_their_tokens() -> None:
    cost = make_cost(Usage(ONE, 0), LIST, in_batches=True, made_tokens=300, sent_tokens=100)
    assert (cost.usd, cost.live_usd, cost.saved_by_dedupe_usd) == (1.0, 2.0, 2.0)
    assert make_cost(Usage(), LIST, in_batches=True).saved_by_dedupe_usd == 0


def test_a_purse_counts_what_is_spent_what_flies_and_what_is_next_at_most() -> None:
    cut = Cut(START, requests=1, tokens=ONE // 10, most_output=ONE // 10)  # 0.15 and 0.4 USD at most
    purse = Purse(LIST, max_usd=2.0, spent_usd=0.5)
    assert purse.has_for(cut, [cut], Usage())
    assert not purse.has_for(cut, [cut, cut], Usage())
    assert not purse.has_for(cut, [cut], Usage(ONE, 0))
    assert Purse(None, max_usd=None).has_for(cut, [cut] * 99, Usage(ONE, ONE))


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (b'{"max_tokens":5}', 5),
        (b'{"max_completion_tokens":7,"n":3}', 21),
        (b'{"input":"x"}', 0),
        (b'{"max_tokens":null}', 0),
    ],
)
def test_a_body_tells_how_long_its_answer_may_be(body: bytes, most: int) -> None:
    assert read_most_output(body) == most
