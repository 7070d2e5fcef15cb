"""Rows whose record does not fit: they fail without being scored, and keep the record as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.input.kinds import column
from jobs.input.reading import Readable
from jobs.input.records import raw_column
from jobs.settings import Settings
from udfs.errors import MALFORMED

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType


def readable_rows(read: Readable, settings: Settings) -> DataFrame:
    """The rows of an increment whose records fit."""
    raw = raw_column(settings.input)
    return read.frame if raw is None or not read.counts.malformed else read.frame.where(column(raw).isNull())


def add_malformed(scored: DataFrame, read: Readable, settings: Settings) -> DataFrame:
    """The rows of an increment with the result column and its outcome, where those are scored whose records fit."""
    from pyspark.sql import functions as F

    raw = raw_column(settings.input)
    if raw is None or not read.counts.malformed:
        return scored
    name = settings.output.result
    failed = read.frame.where(column(raw).isNotNull()).withColumns(
        {name: _failure(scored.schema[name].dataType), "outcome": F.lit("failed")}
    )
    return scored.unionByName(failed.select(*(column(c) for c in scored.columns)))


def _failure(result: StructType) -> Column:
    """The result of a row that was not scored."""
    from pyspark.sql import functions as F

    known = {
        "error": F.struct(F.lit(MALFORMED.code).alias("code"), F.lit(MALFORMED.message).alias("message")),
        "usage": F.struct(*(F.lit(0).alias(cost.name) for cost in result["usage"].dataType.fields)),
        "truncated": F.lit(False),
    }
    return F.struct(*(known.get(f.name, F.lit(None)).cast(f.dataType).alias(f.name) for f in result.fields))
