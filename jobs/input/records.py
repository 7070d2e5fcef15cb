"""Records of CSV, JSON and XML files: how they are parsed, by which header, and which of them do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jobs.errors import SPARK_ERRORS, InputError
from jobs.input.files import name_some
from jobs.input.kinds import column
from jobs.settings import InputSettings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

Headers = Mapping[str, tuple[str, ...]]  # of CSV files, by their URIs

_RECORDS = ("csv", "json", "xml")
_RAW, _RAW_OPTION = "_corrupt_record", "columnNameOfCorruptRecord"
# As pandas and spreadsheets write it; each file's header is checked; what fits does not hang on what is needed.
_CSV = {"multiLine": "true", "escape": '"', "enforceSchema": "false", "columnPruning": "false"}
_SPECIAL = re.compile(r"[*?\[\]{}\\]")
_AT_A_TIME = 8  # headers that are read at once


def option_of(source: InputSettings, name: str) -> str:
    """One of the input's options, in whatever spelling; empty where it is not set."""
    return next((str(value) for key, value in source.options.items() if key.lower() == name.lower()), "")


def raw_column(source: InputSettings) -> str | None:
    """The column for a record that does not fit, as it was; None where none is looked for."""
    if not source.is_files() or source.format.lower() not in _RECORDS:
        return None
    permissive = option_of(source, "mode").lower() in ("", "permissive")
    return (option_of(source, _RAW_OPTION) or _RAW) if permissive else None


def record_options(source: InputSettings) -> dict[str, Any]:
    """The input's options, and what they leave open of how records are parsed."""
    raw = raw_column(source)
    defaults = (_CSV if source.format.lower() == "csv" else {}) | ({_RAW_OPTION: raw} if raw else {})
    told = {name.lower() for name in source.options}
    return {name: value for name, value in defaults.items() if name.lower() not in told} | source.options


def with_raw(schema: StructType, source: InputSettings) -> StructType:
    """A schema with the column for records that do not fit."""
    from pyspark.sql.types import StringType, StructField, StructType

    raw = raw_column(source)
    if raw is None or raw in schema.names:
        return schema
    return StructType([*schema.fields, StructField(raw, StringType())])


def check_raw(columns: Sequence[str], source: InputSettings) -> None:
    """Refuse a header that has a column of that name, or JSON of which no record fits.

    Raises:
        InputError: It does.
    """
    raw = raw_column(source)
    if raw is None or raw not in columns:
        return
    if source.format.lower() == "csv":
        raise InputError(
            f"the input has a column {raw!r}, which Spark keeps for records that do not fit; set "
            f"input.options.{_RAW_OPTION} to a name that no column has"
        )
    if list(columns) == [raw]:
        raise InputError(f"no record of the input can be read as {source.format}{many_lines(source)}")


def many_lines(source: InputSettings) -> str:
    """What to set for JSON that is written over several lines."""
    if source.format.lower() != "json" or option_of(source, "multiLine").lower() == "true":
        return ""
    return "; if JSON is written over several lines, set input.options.multiLine: true"


def as_pattern(uri: str) -> str:
    """A file as `load` takes it: to it a name is a pattern, and not encoded."""
    return _SPECIAL.sub(r"\\\g<0>", unquote(uri))


def has_headers(source: InputSettings) -> bool:
    """Whether each file tells what its columns are called, and is to be read by that."""
    is_csv = source.format.lower() == "csv" and option_of(source, "header").lower() == "true"
    return is_csv and option_of(source, "enforceSchema").lower() != "true"


def read_headers(spark: SparkSession, source: InputSettings, uris: Sequence[str]) -> Headers:
    """The header of each CSV file; a file without a line, or one that cannot be read, has none."""
    aside = ("basepath", "inferschema")
    options = {name: value for name, value in record_options(source).items() if name.lower() not in aside}

    def read(uri: str) -> tuple[str, ...]:
        try:
            return tuple(spark.read.format(source.reader()).options(**options).load(as_pattern(uri)).columns)
        except SPARK_ERRORS:  # what is wrong with it is told when it is read
            return ()

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return dict(zip(uris, pool.map(read, uris), strict=True))


def by_header(uris: Sequence[str], headers: Headers) -> dict[tuple[str, ...], list[str]]:
    """Files with the same header; an empty one stands for the schema's own."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for uri in uris:
        groups.setdefault(headers.get(uri, ()), []).append(uri)
    return groups


def by_directories(uris: Iterable[str]) -> list[list[str]]:
    """Files whose directories are the same partition columns; where some have none, Spark leaves them out."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for uri in uris:
        groups.setdefault(tuple(sorted(_partitions([uri]))), []).append(uri)
    return list(groups.values())


def schema_of(header: tuple[str, ...], uris: Sequence[str], schema: StructType, source: InputSettings) -> StructType:
    """The schema in the order of a header; a column that is new is a string."""
    from pyspark.sql.types import StringType, StructField, StructType

    if not header:
        return schema
    known = {field.name.lower(): field for field in schema.fields}
    held = [known.get(name.lower(), StructField(name, StringType())) for name in header]
    lowered, beside = {name.lower() for name in header}, {*_partitions(uris), raw_column(source)}
    return StructType([*held, *(f for f in schema.fields if f.name in beside and f.name.lower() not in lowered)])


def unite(schemas: Sequence[StructType]) -> StructType:
    """All columns of several schemas; one that has several types is a string."""
    from pyspark.sql.types import StringType, StructField, StructType

    fields: dict[str, StructField] = {}
    for field in (field for schema in schemas for field in schema.fields):
        held = fields.setdefault(field.name.lower(), field)
        if held.dataType != field.dataType:
            fields[field.name.lower()] = StructField(held.name, StringType())
    return StructType(list(fields.values()))


def complete(frame: DataFrame, schema: StructType) -> DataFrame:
    """Rows with all columns of a schema: null where their files have none."""
    from pyspark.sql import functions as F

    held = {name.lower() for name in frame.columns}
    absent = {f.name: F.lit(None).cast(f.dataType) for f in schema.fields if f.name.lower() not in held}
    return frame.withColumns(absent) if absent else frame


def _partitions(uris: Iterable[str]) -> set[str]:
    """Columns that are directories of the files."""
    parts = (part for uri in uris for part in urlsplit(uri).path.split("/")[:-1])
    return {unquote(part.split("=")[0]) for part in parts if "=" in part}


def tell_headers(headers: Headers, schema: StructType, source: InputSettings, needed: Sequence[str]) -> list[str]:
    """Warnings about columns that a CSV file adds or lacks.

    Args:
        headers: Of the files.
        schema: That they are read by.
        source: The input.
        needed: Columns that no file may lack.

    Raises:
        InputError: One lacks such a column.
    """
    held, told = {name.lower(): name for name in schema.names if name != raw_column(source)}, list[str]()
    for header, uris in by_header(list(headers), headers).items():
        if not header:
            continue
        found = {name.lower() for name in header}
        told += tell_columns(
            [name for name in header if name.lower() not in held],
            [name for low, name in held.items() if low not in found and name not in _partitions(uris)],
            uris, needed,
        )  # fmt: skip
    return told


def tell_columns(new: list[str], absent: list[str], uris: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Warnings about columns that files add to those of the first run, or lack.

    Raises:
        InputError: They lack one that is needed.
    """
    files = name_some([unquote(urlsplit(uri).path) for uri in uris])
    lowered = {name.lower() for name in needed}
    if lost := [name for name in absent if name.lower() in lowered]:
        raise InputError(
            f"a file of the input lacks {', '.join(lost)}, which the job needs: {files}; mend it, or take it away"
        )
    told = []
    if new:
        told.append(f"new columns are left out, since the output was begun without them: {', '.join(new)} of {files}")
    if absent:
        told.append(f"columns that are not there are null: {', '.join(absent)} of {files}")
    return told


def is_swallowed(schema: StructType, source: InputSettings, uris: Sequence[str], read: Sequence[str]) -> Column | None:
    """Whether a CSV record seems to hold others in a value, since a quote was not closed; None if none can.

    Args:
        schema: Of the input.
        source: The input.
        uris: The files.
        read: Columns that are read.
    """
    from pyspark.sql import functions as F

    raw = raw_column(source)
    held = [field for field in schema.fields if field.name != raw and field.name not in _partitions(uris)]
    columns = [f.name for f in held if f.dataType.simpleString() == "string" and f.name in read]
    others = len(held) - 1
    if source.format.lower() != "csv" or not columns or others < 1:
        return None
    mark = re.escape(option_of(source, "sep") or option_of(source, "delimiter") or ",")
    line = rf"(?m)^[^\n{mark}]+(?:{mark}[^\n{mark}]*){{{others}}}$"

    def holds(name: str) -> Column:
        value = column(name)
        return value.rlike(r'(?s)^".*\n|\n$') & F.regexp_replace(value, r"^[^\n]*\n", "").rlike(line)

    found = [F.coalesce(holds(name), F.lit(False)) for name in columns]
    return found[0] if len(found) == 1 else F.greatest(*found)
