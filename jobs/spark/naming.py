"""Names of what Spark does, for its UI: which increment, and which step of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NAMES = ("spark.job.description", "callSite.short")  # of a job and its query; of a stage


@contextlib.contextmanager
def named(spark: SparkSession, name: str) -> Iterator[None]:
    """Have Spark call so what it does for the body, on this thread; Spark Connect has no such names."""
    context: Any = getattr(spark, "_sc", None)
    if context is None:
        yield
        return
    before = {key: context.getLocalProperty(key) for key in _NAMES}
    for key in _NAMES:
        context.setLocalProperty(key, name)
    try:
        yield
    finally:
        for key, old in before.items():
            context.setLocalProperty(key, old)
