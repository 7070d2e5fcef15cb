"""Changes of a table that are followed: which rows are to be scored, and which are there no more.

Delta tells of them by its change data feed, Iceberg by the `changes` of a table between two snapshots. Of an increment,
what counts of each key is what was done to it last. An increment may end in the middle of a commit, and a key be that
of several rows: so one that was deleted is gone only where the table has it no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from jobs.input.kinds import column, hashable

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

CHANGE, ORDER = "_gristmill_change", "_gristmill_order"  # what was done to a row, and in which order
_NAMES = {"_change_type": CHANGE, "_commit_version": ORDER, "_change_ordinal": ORDER}
_BESIDE = ("_commit_timestamp", "_commit_snapshot_id")
_ARRIVES = ("insert", "update_postimage", "update_after")
_LAST, _LEFT = "_gristmill_last", "_gristmill_left"


def as_changes(frame: DataFrame) -> DataFrame:
    """Changes with their columns as we call them."""
    return frame.withColumnsRenamed({old: new for old, new in _NAMES.items() if old in frame.columns}).drop(*_BESIDE)


def part_changes(frame: DataFrame, key: Sequence[str]) -> tuple[DataFrame, DataFrame | None]:
    """The rows of an increment that are to be scored, and the keys of those that are there no more.

    A row that a commit only moved, or changed in columns that the job does not need, is neither. Rows whose key has a
    null are told apart by nothing: they are scored as they come, and none is taken for gone.

    Args:
        frame: Changes; or rows, all of which are to be scored.
        key: The columns that tell which row is which.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    if CHANGE not in frame.columns:
        return frame, None
    arrives = F.lower(F.col(CHANGE)).isin(*_ARRIVES)
    keys = list(map(column, key))
    needed = [hashable(name, kind) for name, kind in frame.dtypes if name not in (CHANGE, ORDER)]
    content = Window.partitionBy(*keys, ORDER, F.xxhash64(F.lit(0), *needed))
    moved = frame.withColumn(_LEFT, F.sum(F.when(arrives, 1).otherwise(-1)).over(content)).where(F.col(_LEFT) != 0)
    in_order = Window.partitionBy(*keys).orderBy(F.col(ORDER).desc(), arrives.desc())
    placed = moved.withColumn(_LAST, F.rank().over(in_order) == 1)  # several, where they have one key: told later
    unkeyed = _has_null(keys)
    scored = placed.where((F.col(_LAST) | unkeyed) & arrives).drop(CHANGE, ORDER, _LEFT, _LAST)
    return scored, placed.where(F.col(_LAST) & ~arrives & ~unkeyed).select(*keys).distinct()


def leave_present(gone: DataFrame, table: DataFrame, key: Sequence[str]) -> DataFrame:
    """Keys without those that a table has.

    Args:
        gone: Keys of rows that were deleted.
        table: As it is now: what it gets later comes with a later increment.
        key: Their columns, as far as the table has them.
    """
    from pyspark.sql import functions as F

    names = [f"_gristmill_key_{number}" for number in range(len(key))]
    there = table.select(*(column(k).alias(name) for k, name in zip(key, names, strict=True)))
    same = [column(k) == F.col(name) for k, name in zip(key, names, strict=True)]
    return gone.join(there, same, "left_anti")


def _has_null(keys: Sequence[Column]) -> Column:
    return reduce(or_, (key.isNull() for key in keys))
