"""A table that answers go to is not the one that rows come from, however either is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.errors import SPARK_ERRORS, OutputError
from jobs.paths import canonical
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PART = r"(?:`(?:[^`]|``)+`|\w+)"
_IDENTIFIER = re.compile(rf"{_PART}(?:\s*\.\s*{_PART})*")


def check_apart(spark: SparkSession, settings: Settings) -> None:
    """Refuse a table that is the input, or that its query reads.

    Raises:
        OutputError: It is.
    """
    output, source = settings.output, settings.input
    if not output.table or (there := _resolve(spark, output.table)) is None:
        return
    names = [source.table] if source.table else _identifiers(source.query or "", there[-1])
    for name in names:
        if _resolve(spark, name) == there:
            raise OutputError(f"output.table {output.table} is {name} of the input: answers would be read as input")
    if source.path and (place := _location(spark, output.table)) and canonical(place) == canonical(source.path):
        raise OutputError(f"output.table {output.table} is input.path {source.path}: answers would be read as input")


def _identifiers(query: str, last: str) -> Iterator[str]:
    """What a query may call a table of some name."""
    for found in _IDENTIFIER.findall(query):
        if _parts(found)[-1] == last:
            yield found


def _parts(name: str) -> list[str]:
    return [part.strip("`").replace("``", "`").lower() for part in re.findall(_PART, name)]


def _resolve(spark: SparkSession, name: str) -> tuple[str, ...] | None:
    """Catalog, namespace and name of a table; None where there is no such one."""
    try:
        found = spark.catalog.getTable(name)
    except SPARK_ERRORS:
        return None
    if found.catalog is None:  # a view of the session
        return None
    return tuple(part.lower() for part in (found.catalog, *(found.namespace or ()), found.name))


def _location(spark: SparkSession, table: str) -> str | None:
    rows = spark.sql(f"DESCRIBE TABLE EXTENDED {table}").where("col_name = 'Location'").collect()
    return str(rows[0]["data_type"]) if rows else None
