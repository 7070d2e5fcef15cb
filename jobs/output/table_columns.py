"""The columns of a table that answers go to, held against those of one that is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobs.errors import OutputError
from jobs.input.kinds import spelt
from jobs.input.sources import explode_variants, kept_columns
from jobs.layout import answer_columns
from jobs.output.tables import Table
from jobs.output_settings import ADDED
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

_SMALL = re.compile(r"\b(tinyint|smallint)\b")  # which Iceberg has not; it keeps them as int


def columns_of(frame: DataFrame, settings: Settings) -> StructType:
    """The columns of a job's table: those of the input that are kept, the answers', `outcome` and `increment`."""
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import IntegerType, StringType, StructField, StructType

    whole = explode_variants(frame, settings)
    names = [spelt(whole.columns, name) for name in kept_columns(whole, settings)]
    kept = [StructField(name, whole.schema[name].dataType) for name in names]
    made = [StructField(name, from_arrow_type(kind)) for name, kind in answer_columns(settings).items()]
    added = [StructField("outcome", StringType()), StructField("increment", IntegerType())]
    fields = StructType([*kept, *made, *added]).jsonValue()
    return StructType.fromJson(_nullable(fields))


def check_columns(table: Table, wanted: StructType) -> None:
    """Refuse a table whose columns are others.

    Raises:
        OutputError: They are.
    """
    if not table.exists():
        return
    there = {field.name.lower(): _kind(field, table) for field in table.read().schema.fields}
    asked = {field.name.lower(): _kind(field, table) for field in wanted.fields}
    told = [f"{name} is {there[name]} and not {kind}" for name, kind in asked.items() if there.get(name, kind) != kind]
    told += [f"it has {name}" for name in there if name not in asked]
    told += [f"it lacks {name} {kind}" for name, kind in asked.items() if name not in there]
    if told:
        afresh = ", or start afresh with --overwrite" if there.keys() >= {*ADDED} else ""
        raise OutputError(
            f"{table.place} has other columns than this job writes ({'; '.join(told)}): change it by ALTER TABLE, name "
            f"the input's in output.columns, or name another table{afresh}"
        )


def check_is_output(table: Table, settings: Settings) -> None:
    """Refuse to start afresh in a table that holds something else than answers, which would be replaced.

    Raises:
        OutputError: It does.
    """
    if not table.exists():
        return
    rows = table.read()
    if not {name.lower() for name in rows.columns} >= {*ADDED} and rows.limit(1).count():
        raise OutputError(
            f"{settings.output.called} holds rows and is no output of gristmill, which has columns "
            f"{' and '.join(ADDED)}; --overwrite would replace it: name another table, or drop it yourself"
        )


def check_unused(table: Table, settings: Settings) -> None:
    """Refuse to merge into a table that holds rows before its job has begun.

    Raises:
        OutputError: It does.
    """
    if settings.output.mode == "merge" and table.exists() and table.read().limit(1).count():
        raise OutputError(
            f"{table.place} holds rows that no job of output.state {settings.output.state_path} has written, and which "
            "output.mode merge would replace by their key; name another table, or start afresh with --overwrite"
        )


def _kind(field: Any, table: Table) -> str:
    told = str(field.dataType.simpleString())
    return _SMALL.sub("int", told) if table.format == "iceberg" else told


def _nullable(told: Any) -> Any:
    """A type in which everything may be null, and no column has notes."""
    if isinstance(told, list):
        return [_nullable(part) for part in told]
    if not isinstance(told, dict):
        return told
    forced = {"nullable": True, "containsNull": True, "valueContainsNull": True, "metadata": {}}
    return {name: forced[name] if name in forced else _nullable(value) for name, value in told.items()}
