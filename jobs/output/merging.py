"""Rows merged into a table by their key: one that is scored again takes the place of what it was."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

WAS = "_gristmill_was"  # of a row that a retry has mended: the increment in which it had failed
DELETED = "deleted"  # the outcome of a row that the input has no more
_PLACE = "_gristmill_place"


def merge_statement(table: str, columns: Sequence[str], key: Sequence[str]) -> str:
    """SQL that merges `{rows}` into a table.

    Args:
        table: As SQL calls it.
        columns: Of the rows.
        key: Those that tell which row is which.
    """
    quoted = [_braced(_quoted(name)) for name in columns if name != WAS]
    same = " AND ".join(f"t.{name} = s.{name}" for name in (_braced(_quoted(name)) for name in key))
    update = ", ".join(f"t.{name} = s.{name}" for name in quoted)
    names, values = ", ".join(quoted), ", ".join(f"s.{name}" for name in quoted)
    start = f"MERGE INTO {_braced(table)} t USING {{rows}} s ON {same} "
    if WAS in columns:  # only the very row that had failed: a later one, or none, is not for a retry to replace
        still = f"t.outcome = 'failed' AND t.increment = s.{WAS}"
        return start + f"WHEN MATCHED AND {still} THEN UPDATE SET {update}"
    return start + (
        f"WHEN MATCHED AND s.outcome = '{DELETED}' THEN DELETE WHEN MATCHED THEN UPDATE SET {update} "
        f"WHEN NOT MATCHED AND s.outcome != '{DELETED}' THEN INSERT ({names}) VALUES ({values})"
    )


def one_of_each(rows: DataFrame, key: Sequence[str]) -> DataFrame:
    """One row of each key, one that succeeded before one that failed; rows whose key has a null are all kept."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    columns = [F.col(_quoted(name)) for name in key]
    window = Window.partitionBy(*columns).orderBy(F.col("outcome").desc())
    placed = rows.withColumn(_PLACE, F.row_number().over(window))
    return placed.where((F.col(_PLACE) == 1) | has_null(key)).drop(_PLACE)


def count_unkeyed(rows: DataFrame, key: Sequence[str]) -> tuple[int, int]:
    """Rows that have the key of another one, and rows whose key has a null."""
    from pyspark.sql import functions as F

    whole = F.struct(*(F.col(_quoted(name)) for name in key))
    without = F.count_if(has_null(key))
    found = rows.agg(
        F.count(F.lit(1)).alias("rows"),
        without.alias("without"),
        F.count_distinct(F.when(~has_null(key), whole)).alias("keys"),
    ).collect()[0]
    return found["rows"] - found["without"] - found["keys"], found["without"]


def has_null(key: Sequence[str]) -> Column:
    """Whether a row's key has a null."""
    from pyspark.sql import functions as F

    return reduce(or_, (F.col(_quoted(name)).isNull() for name in key))


def as_deleted(keys: DataFrame, like: DataFrame) -> DataFrame:
    """Keys of rows that are to go, with the columns of those that come."""
    from pyspark.sql import functions as F

    told = {name.lower() for name in keys.columns}
    columns = [
        F.col(_quoted(f.name)) if f.name.lower() in told else F.lit(None).cast(f.dataType).alias(f.name)
        for f in like.schema.fields
    ]
    return keys.select(*columns)


def tell_unkeyed(rows: DataFrame, key: Sequence[str], place: str) -> list[str]:
    """Warns of rows that their keys do not tell from others."""
    repeated, without = count_unkeyed(rows, key)
    told = []
    if repeated:
        told.append(
            f"{repeated:,} rows of an increment have the key of another one in it; of each key one is in {place}, "
            "one that succeeded first"
        )
    if without:
        told.append(f"{without:,} rows have a null in input.key: they are in {place}, and nothing will replace them")
    return told


def _braced(name: str) -> str:
    """A name in a statement whose braces stand for DataFrames."""
    return name.replace("{", "{{").replace("}", "}}")


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
