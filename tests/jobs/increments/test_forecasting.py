"""What a dry run says that a provider is going to cost."""

from __future__ import annotations

from jobs.increments.forecasting import Forecast


def test_a_limit_that_the_cost_may_pass_is_told() -> None:
    told = [*Forecast(20, 80, 4000, 9600, 1, usd=0.5, live_usd=1.0, max_usd=0.4).lines()]
    assert "1 batches or more" in told[0]
    assert told[1] == "at most 0.5 USD by the settings' prices, 1 without the discount"
    assert "limits.max_usd is 0.4 USD" in told[2]
    assert len([*Forecast(20, 80, 4000, 9600, 1, usd=0.5, live_usd=1.0, max_usd=0.5).lines()]) == 2


def test_requests_that_are_asked_live_are_no_batches_and_have_no_discount() -> None:
    told = [*Forecast(20, 80, 4000, 9600, None, usd=1.0, live_usd=1.0).lines()]
    assert "batches" not in told[0]
    assert told[1:] == ["at most 1 USD by the settings' prices"]
