"""The ranges of int8 vectors: measured once, of a sample of the first increment, and kept for all that come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jobs.errors import InputError
from jobs.increments.plan import Plan, plan_partitions, score_frame
from jobs.input.kinds import column
from jobs.output.directory import Output
from jobs.settings import Settings
from jobs.spark.session import count_slots
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.quantizing import Ranges, measure_ranges

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_SAMPLE = 1000  # rows; sentence-transformers wants 100 at least
_FEW = 100
_SPARE = 1.3  # Spark draws about as many rows as it is asked for
_SEED = 7


def settle_ranges(
    frame: DataFrame, settings: Settings, output: Output, *, rows: int, deadline: float | None = None
) -> tuple[Settings, tuple[str, ...]]:
    """Have int8 vectors go by the ranges that this output is begun with; measure them where it is about to begin.

    Args:
        frame: The rows that are about to be scored.
        settings: The job.
        output: Whose job file holds the ranges.
        rows: Rows of the frame.
        deadline: As of `score_frame`.

    Returns:
        The settings, with ranges where vectors are int8 and there is a row that has one; and what is to be told.

    Raises:
        InputError: One row alone has a vector, which is no range.
        BusyError: The output is another driver's by now.
    """
    options = settings.spec().options
    if not isinstance(options, FeatureExtractionOptions) or options.quantization != "int8" or options.ranges:
        return settings, ()
    if held := output.ranges():
        return _with_ranges(settings, held), ()
    vectors = _embed_some(frame, settings, rows, deadline)
    if not len(vectors):
        return settings, ()  # no row of the sample has a vector; one of the others would fail the job
    if len(vectors) == 1:
        raise InputError(
            "score.quantization int8 needs ranges, and one row alone has a vector to measure them of; begin with more "
            "rows, or give score.ranges"
        )
    measured = measure_ranges(vectors)
    output.keep_ranges(measured)
    few = f"int8 goes by the ranges of {len(vectors)} vectors: later ones that are beyond them are cut to their ends"
    return _with_ranges(settings, measured), ((few,) if len(vectors) < _FEW else ())


def _with_ranges(settings: Settings, ranges: Ranges) -> Settings:
    return _with_score(settings, ranges=[tuple(row) for row in ranges])


def _with_score(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"score": settings.score.model_copy(update=values)})


def _embed_some(frame: DataFrame, settings: Settings, rows: int, deadline: float | None) -> np.ndarray:
    """(N, D) float32 vectors of some rows, drawn from all of them."""
    drawn = frame.sample(min(1.0, _SPARE * _SAMPLE / rows), seed=_SEED).limit(_SAMPLE) if rows > _SAMPLE else frame
    floats, name = _with_score(settings, quantization="float32"), settings.output.result
    count = min(rows, _SAMPLE)
    plan = Plan(count, plan_partitions(count, count_slots(frame.sparkSession), settings))
    scored = score_frame(drawn, floats, plan, deadline=deadline).where("outcome = 'succeeded'")
    found = scored.select(column(name)["embedding"].alias("vector")).collect()
    return np.array([row["vector"] for row in found], dtype=np.float32)
