"""What the batch has saved: some of the texts once more, one at a time, by the engines that have scored them.

It is asked when all is committed, takes a small part of the run's time, and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jobs.errors import SPARK_ERRORS
from jobs.output.committed import Increment, add_up
from jobs.serving import list_specs
from jobs.settings import Settings
from jobs.spark.session import count_slots
from udfs.factory import make_comparer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LEAST_S = 60.0  # shorter runs would notice
_BUDGET_S, _MOST_S, _SHARE = 2.0, 30.0, 0.005  # at least, at most, of the time of scoring
_PATIENCE = 3  # budgets after which nobody waits any more
_LEAST_TEXTS = 3
_T_975 = (12.71, 4.31, 3.19, 2.78, 2.58, 2.45, 2.37, 2.31, 2.27)  # Student's t for 1, 2, … degrees of freedom
_TAG = "gristmill-compare"


@dataclass(frozen=True)
class Comparison:
    """What scoring took, and what it would have taken one text at a time, by some of the texts.

    Args:
        texts: That were timed, of one engine or several, and `seconds` that they took.
        engines: That would have had a part each: those that have answered, or that the last increment tells of, if
            these are more.
        alone_s: Seconds of those engines together for all that the run has scored, one text at a time: a ratio estimate
            by tokens, with a 95 % interval by Student's t, `alone_low_s` to `alone_high_s`.
        times: How many times as long as the run has scored, reading and writing included; `times_low`, `times_high`.
        alone_usd: What it would have cost; `alone_usd_low`, `alone_usd_high`. Null without a price.
    """

    texts: int
    seconds: float
    engines: int
    alone_s: float
    alone_low_s: float
    alone_high_s: float
    times: float
    times_low: float
    times_high: float
    alone_usd: float | None = None
    alone_usd_low: float | None = None
    alone_usd_high: float | None = None


def budget_of(scoring_s: float, left_s: float | None) -> float | None:
    """Seconds that a comparison may take; None where it is not worth it, or the deadline is near."""
    budget_s = min(_MOST_S, max(_BUDGET_S, _SHARE * scoring_s))
    if scoring_s < LEAST_S or (left_s is not None and left_s < 2 * _PATIENCE * budget_s):
        return None
    return budget_s


def compare(
    spark: SparkSession, settings: Settings, increments: Sequence[Increment], run_id: str, *, left_s: float | None
) -> Comparison | None:
    """Have engines time some texts one at a time; None where there is nothing to say.

    Args:
        spark: The session.
        settings: The job.
        increments: Of the run, all of which is committed.
        run_id: The run.
        left_s: Seconds until its deadline.
    """
    counts, scoring_s = add_up(i.counts for i in increments), sum(i.seconds for i in increments)
    budget_s = budget_of(scoring_s, left_s)
    if not settings.cost.compare or settings.is_hosted() or settings.models or budget_s is None:
        return None
    timed = _ask(spark, settings, run_id, budget_s)
    hosts = len({name.split(":", 1)[0] for name in counts.engines})
    return estimate(
        timed,
        tokens=counts.input_tokens,
        scoring_s=scoring_s,
        usd_per_hour=settings.cost.usd_per_hour,
        hosts=hosts,
        engines=len(increments[-1].counts.engines),
    )


def estimate(
    timed: Sequence[Sequence[tuple[int, float]]],
    *,
    tokens: int,
    scoring_s: float,
    usd_per_hour: float | None = None,
    hosts: int = 1,
    engines: int = 1,
) -> Comparison | None:
    """What all of a run would have taken, by some of its texts.

    Args:
        timed: Of each engine, tokens and seconds of texts.
        tokens: That the run has scored.
        scoring_s: Seconds that it took.
        usd_per_hour: Price of a machine.
        hosts: Machines.
        engines: That have scored at once, as far as is known; some may not have answered.

    Source: Cochran, Sampling Techniques, the ratio estimator and its variance.
    """
    sizes, seconds = (np.array([pair[place] for of in timed for pair in of], float) for place in (0, 1))
    count, engines = len(sizes), max(len(timed), engines)
    if count < _LEAST_TEXTS or not tokens or scoring_s <= 0:
        return None
    rate = seconds.sum() / sizes.sum()
    spread = (seconds - rate * sizes).std(ddof=1) / math.sqrt(count) / sizes.mean()
    off = _t_975(count - 1) * spread
    alone = [tokens * max(0.0, one) for one in (rate, rate - off, rate + off)]
    times = [one / engines / scoring_s for one in alone]
    usd = [None if usd_per_hour is None else round(usd_per_hour * hosts * one / engines / 3600, 4) for one in alone]
    return Comparison(
        count, round(float(seconds.sum()), 3), engines, *(round(one, 3) for one in (*alone, *times)), *usd
    )


def _t_975(freedom: int) -> float:
    """The 97.5 % point of Student's t, or a little more."""
    return _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96 + 2.7 / freedom


def _ask(spark: SparkSession, settings: Settings, run_id: str, budget_s: float) -> list[list[tuple[int, float]]]:
    """What each engine says; those that do not answer in time say nothing."""
    from pyspark.sql import functions as F

    found: list[list[tuple[int, float]]] = []

    def ask() -> None:
        with contextlib.suppress(*SPARK_ERRORS):
            slots = count_slots(spark)
            spark.addTag(_TAG)
            for spec in list_specs(settings):
                asked = make_comparer(spec, run_id, budget_s=budget_s)
                told = spark.range(0, slots, 1, slots).select(asked(F.col("id")).alias("told")).collect()
                found.extend(json.loads(row.told) for row in told if row.told)

    asking = threading.Thread(target=ask, name="gristmill-compare", daemon=True)
    asking.start()
    asking.join(_PATIENCE * budget_s)
    if asking.is_alive():  # executors may be gone
        with contextlib.suppress(*SPARK_ERRORS):
            spark.interruptTag(_TAG)
        return []
    return found
