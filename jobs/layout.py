"""The columns of an output: a struct of the answers, or its fields as columns by themselves.

A job works on the struct, whatever its output's layout is; it is taken apart as rows are written, and put together as
they are read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.errors import SettingsError
from jobs.output_settings import ADDED
from jobs.settings import Settings
from udfs.factory import answer_type
from udfs.results import COMMON_FIELDS, USAGE
from udfs.worker.requests import result_of_requests

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

Flat = Mapping[str, tuple[str, ...]]  # columns, and where each is in the struct
_COMMON = {field.name for field in COMMON_FIELDS}


def flat_columns(settings: Settings) -> Flat | None:
    """The columns that the struct is taken apart into; None where it stays one.

    Raises:
        ModelError, SpecError: The model is not there, or cannot do what is asked.
    """
    if settings.output.layout != "flat":
        return None
    made = _result_type(settings)
    found: dict[str, tuple[str, ...]] = {field.name: (field.name,) for field in made if field.name not in _COMMON}
    found |= {f"error_{name}": ("error", name) for name in ("code", "message")}
    found |= {name: ("usage", name) for name in USAGE}
    found |= {name: (name,) for name in ("truncated", "engine")}
    return {f"{settings.output.prefix}{name}": path for name, path in found.items()}


def answer_columns(settings: Settings) -> dict[str, pa.DataType]:
    """The columns of the answers, with their types."""
    made, flat = _result_type(settings), flat_columns(settings)
    return {settings.output.name: made} if flat is None else {name: _type_of(made, at) for name, at in flat.items()}


def added_columns(settings: Settings) -> list[str]:
    """The columns of an output that its input has not."""
    flat = flat_columns(settings)
    return [*([settings.output.name] if flat is None else flat), *ADDED]


def check_layout(settings: Settings) -> None:
    """Refuse a layout by which a column that is kept would be hidden, as far as the settings tell.

    Raises:
        SettingsError: It would; by the names of the input, the same is found as they are read.
    """
    kept = settings.output_columns() or []
    if taken := [name for name in added_columns(settings) if name in kept]:
        raise SettingsError(tell_taken(taken[0], settings))
    by, columns = settings.output.partition_by, settings.output_columns()
    if columns is not None and (absent := [name for name in by if name.lower() not in map(str.lower, columns)]):
        raise SettingsError(f"output.partition_by names {absent[0]}, which output.columns does not keep; add it there")


def tell_taken(name: str, settings: Settings) -> str:
    """That a column of the input has the name of one that the output adds, and what to do."""
    way = "output.name" if settings.output.layout == "struct" else "output.prefix"
    if name.lower() in ADDED:
        way = "output.columns"
    advice = f"set {way}, or leave the input's out of output.columns"
    if way == "output.columns":
        advice = "leave the input's out of output.columns, or rename it in a `query`"
    return f"the output adds a column {name!r}, but the input has one too; {advice}"


def take_apart(frame: DataFrame, result: str, flat: Flat) -> DataFrame:
    """Rows with the fields of the struct as columns, in its place."""
    fields = [_field(_column(result), path).alias(name) for name, path in flat.items()]
    made = ([_column(name)] if name != result else fields for name in frame.columns)
    return frame.select(*(column for columns in made for column in columns))


def put_together(frame: DataFrame, result: str, flat: Flat) -> DataFrame:
    """The rows as they were before `take_apart`, but for nullability."""
    from pyspark.sql import functions as F

    column_of = {path: _column(name) for name, path in flat.items()}
    own = {path[0]: column_of[path] for path in flat.values() if len(path) == 1 and path[0] not in _COMMON}
    error = F.struct(*(column_of["error", name].alias(name) for name in ("code", "message")))
    made: dict[str, Any] = {
        **own,
        "error": F.when(column_of["error", "code"].isNotNull(), error),
        "usage": F.struct(*(column_of["usage", name].alias(name) for name in USAGE)),
        "truncated": column_of[("truncated",)],
        "engine": column_of[("engine",)],
    }
    first, others = next(iter(flat)), _others(frame.columns, flat)
    struct = F.struct(*(value.alias(name) for name, value in made.items())).alias(result)
    place = len(_others(frame.columns[: frame.columns.index(first)], flat))
    columns = list(map(_column, others))
    return frame.select(*columns[:place], struct, *columns[place:])


def partition_types(schema: StructType, settings: Settings) -> dict[str, Any]:
    """Types of the columns that are directories in the output, as Spark's JSON has them.

    Args:
        schema: Of the input.
        settings: The job.
    """
    kinds = {field.name.lower(): field.dataType for field in schema.fields}
    by = settings.output.partition_by
    return {name: kinds[name.lower()].jsonValue() if name.lower() in kinds else "string" for name in by}


def with_types(schema: StructType, kinds: Mapping[str, Any]) -> StructType:
    """A schema in which some columns have other types: what Spark makes of a directory's name is a guess."""
    from pyspark.sql.types import StructType

    told = {name.lower(): kind for name, kind in kinds.items()}
    fields = [
        {**field, "type": told.get(field["name"].lower(), field["type"])} for field in schema.jsonValue()["fields"]
    ]
    return StructType.fromJson({"fields": fields})


def _result_type(settings: Settings) -> pa.StructType:
    return result_of_requests() if settings.models else answer_type(settings.spec())


def _type_of(result: pa.DataType, path: tuple[str, ...]) -> pa.DataType:
    """The type of what is somewhere in a struct."""
    for name in path:
        result = result.field(name).type
    return result


def _others(names: Iterable[str], flat: Flat) -> list[str]:
    return [name for name in names if name not in flat]


def _field(struct: Column, path: tuple[str, ...]) -> Column:
    for name in path:
        struct = struct[name]
    return struct


def _column(name: str) -> Column:
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")
