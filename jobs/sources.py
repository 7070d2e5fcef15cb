"""Read the input table, and say in a line what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import SPARK_ERRORS, InputError, explain
from jobs.settings import InputSettings, Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def read_input(spark: SparkSession, settings: Settings) -> DataFrame:
    """The input as a DataFrame whose columns hold what the job needs. Nothing is computed yet.

    Raises:
        InputError: No such path, table or column; a column's name twice; a name that the output needs.
    """
    try:
        frame = _load(spark, settings.input)
        columns = frame.columns
    except SPARK_ERRORS as error:
        raise InputError(f"cannot read the input: {explain(error)}") from error
    check_columns(columns, settings)
    return frame


def check_columns(columns: list[str], settings: Settings) -> None:
    """Check the input's columns against what the job reads and writes; Spark does not tell case apart."""
    lowered = [column.lower() for column in columns]
    twice = sorted({column for column in columns if lowered.count(column.lower()) > 1})
    if twice:
        raise InputError(f"the input has several columns named {', '.join(twice)}; rename them in a `query`")
    wanted = {
        "score.text": settings.text_columns(),
        "input.key": settings.input.key,
        "output.columns": settings.output.columns or [],
    }
    for setting, names in wanted.items():
        absent = [name for name in names if name.lower() not in lowered]
        if absent:
            raise InputError(
                f"{setting} names {', '.join(absent)}, but the input's columns are: {', '.join(columns) or 'none'}"
            )
    kept = lowered if settings.output.columns is None else [name.lower() for name in settings.output.columns]
    taken = [name for name in (settings.output.name, "outcome", "increment") if name.lower() in kept]
    if taken:
        raise InputError(
            f"the output adds a column {taken[0]!r}, but the input has one too; set output.name, or leave the input's "
            "out of output.columns"
        )


def _load(spark: SparkSession, source: InputSettings) -> DataFrame:
    if source.table:
        return spark.table(source.table)
    if source.query:
        return spark.sql(source.query)
    return spark.read.format(source.format).options(**source.options).load(source.path)
