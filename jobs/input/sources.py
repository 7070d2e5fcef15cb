"""Read the input table, and say in a line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from jobs.errors import SPARK_ERRORS, InputError, unreadable_input
from jobs.folder import Folder
from jobs.input.checkpoint import path_of
from jobs.input.following import CHANGE, ORDER, as_changes
from jobs.input.json_lines import read_joined
from jobs.input.kinds import can_hash, check_text_types, column, tells_case
from jobs.input.records import (
    Headers,
    as_pattern,
    by_directories,
    by_header,
    check_raw,
    complete,
    has_headers,
    raw_column,
    read_headers,
    record_options,
    schema_of,
    unite,
    with_raw,
)
from jobs.layout import added_columns, tell_taken
from jobs.paths import GLOB
from jobs.settings import InputSettings, Settings
from jobs.spark.session import spark_conf

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType


# Where an increment's rows come from; for files alone, and never in the output.
OWN = "_gristmill_"  # what is ours begins with it; none of it is in an output
FILE, FILE_SIZE, FILE_TIME = f"{OWN}file", f"{OWN}file_size", f"{OWN}file_time"
_WHERE = (FILE, FILE_SIZE, FILE_TIME)
_NO_HEADERS: Headers = {}
_UNWRITABLE = re.compile(
    r'(?:^|"(?:type|elementType|keyType|valueType)":)"(interval|time\(\d+\))"|"fields":\[\]'
)  # by Parquet
_OF_DIRECTORIES = {"string", "tinyint", "smallint", "int", "bigint", "boolean", "date"}
_NANOS = {"spark.sql.legacy.parquet.nanosAsLong": "true"}
_LOOKED_INTO = 200  # headers of CSV files, before the first run
_STREAMING = ("delta",)
_FOREVER = "100000000000d"  # Spark leaves out files that are a week older than the newest, unless told otherwise
_TELL_ALL = {"ignoreCorruptFiles": "false", "ignoreMissingFiles": "false"}  # whatever the session says

Kind = Literal["files", "table", "iceberg", "once"]


def find_kind(spark: SparkSession, source: InputSettings) -> Kind:
    """How the input can be read: as files, as a table with a log, all increment by increment; or all at once."""
    if source.is_files():
        return "files"
    provider = source.format.lower() if source.path else _provider(spark, source.table) if source.table else ""
    return "iceberg" if provider == "iceberg" else "table" if provider in _STREAMING else "once"


def read_input(spark: SparkSession, settings: Settings, schema: StructType | None = None) -> DataFrame:
    """The input as a DataFrame whose columns hold what the job needs. Nothing is computed yet.

    Args:
        spark: The session.
        settings: The job.
        schema: Of files, where it is known from an earlier run; else they are looked into.

    Raises:
        InputError: No such path, table or column; a column's name twice; a name that the output needs.
    """
    try:
        frame = _load(spark, settings.input, schema) if schema else _look_into(spark, settings)
        columns = frame.columns
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error
    check_types(frame, settings)
    raw = raw_column(settings.input)
    if schema is None:
        check_raw(columns, settings.input)
    check_columns([name for name in columns if name != raw], settings, tells_case=tells_case(spark))
    check_text_types(frame.schema, settings)
    if raw is not None:
        frame = _load(spark, settings.input, with_raw(frame.schema, settings.input))
    if schema is None:
        return frame
    known = {name.lower() for name in schema.names}  # Spark adds partition columns that are new
    return frame.select(*(column(name) for name in frame.columns if name.lower() in known or name == raw))


def read_now(spark: SparkSession, source: InputSettings) -> DataFrame:
    """All that a table holds.

    Raises:
        InputError: It is not there, or cannot be read.
    """
    try:
        return _load(spark, source, None)
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error


def _look_into(spark: SparkSession, settings: Settings) -> DataFrame:
    """The input as its files tell its columns.

    CSV files may each have other ones than the first. Timestamps that Spark does not read are in nobody's way where
    they are not needed.
    """
    source = settings.input
    try:
        frame = _load(spark, source, None)
    except SPARK_ERRORS as error:
        if "NANOS" not in str(error) or settings.output.columns is None:
            raise
        with spark_conf(spark, _NANOS):
            schema = _load(spark, source, None).schema
        return _load(spark, source, schema)
    if not has_headers(source):
        return frame
    headers = read_headers(spark, source, sorted(frame.inputFiles())[:_LOOKED_INTO])
    groups = {header: uris for header, uris in by_header(list(headers), headers).items() if header}
    if len(groups) < 2:
        return frame
    reader = spark.read.format(source.reader()).options(**_file_options(source))
    found = [reader.load([as_pattern(uri) for uri in uris]).schema for uris in groups.values()]
    return _load(spark, source, unite([*found, frame.schema]))


def read_files(
    spark: SparkSession,
    settings: Settings,
    schema: StructType,
    uris: list[str],
    headers: Headers = _NO_HEADERS,
    *,
    joined: Collection[str] = (),
) -> DataFrame:
    """Some of the input's files, by their URIs, with the columns that the job needs and where rows come from.

    Args:
        spark: The session.
        settings: The job.
        schema: Of the input.
        uris: The files.
        headers: Of CSV files, where they differ; each is read by its own.
        joined: JSON files that have several records where Spark reads one.
    """
    schema = with_raw(schema, settings.input)
    if not uris:
        return select_needed(spark.createDataFrame([], schema), settings)
    alone = [uri for uri in uris if path_of(uri) not in set(map(path_of, joined))]
    groups = [
        _read_alike(spark, settings, schema, header, part)
        for header, group in by_header(alone, headers).items()
        for part in by_directories(group)
    ]
    for part in by_directories(sorted(joined)):
        frame = read_joined(spark, settings.input, schema, part, _file_options(settings.input))
        groups.append(_as_needed(frame, settings, schema))
    return reduce(lambda a, b: a.unionByName(b), groups)


def _read_alike(
    spark: SparkSession, settings: Settings, schema: StructType, header: tuple[str, ...], uris: list[str]
) -> DataFrame:
    """Files with the same header, or without."""
    source = settings.input
    by_position = {"enforceSchema": "true"} if header else {}  # the schema is in the header's own order
    reader = spark.read.format(source.reader()).options(**_file_options(source)).options(**by_position)
    frame = reader.schema(schema_of(header, uris, schema, source)).load([as_pattern(uri) for uri in uris])
    return _as_needed(frame, settings, schema)


def _as_needed(frame: DataFrame, settings: Settings, schema: StructType) -> DataFrame:
    """Records of files with the columns that the job needs, and where they come from."""
    from pyspark.sql import functions as F

    about = frame.metadataColumn("_metadata")
    located = frame.select(
        "*",
        about["file_path"].alias(FILE),
        about["file_size"].alias(FILE_SIZE),
        F.unix_millis(about["file_modification_time"]).alias(FILE_TIME),
    )
    whole = complete(located, schema).select(*(column(name) for name in (*schema.names, *_WHERE)))
    return select_needed(whole, settings, *map(F.col, _WHERE))


def read_stream(spark: SparkSession, settings: Settings, schema: StructType, increment_bytes: int) -> DataFrame:
    """The input as a stream of increments; of files, it only tells which they are (see `jobs.input.reading`).

    Args:
        spark: The session.
        settings: The job, whose input is files or a Delta table.
        schema: Of files: that of the batch read.
        increment_bytes: An increment ends with the file that would pass it; it has one file at least.
    """
    source = settings.input
    options = _file_options(source) if source.is_files() else source.options
    reader = spark.readStream.options(**{"maxBytesPerTrigger": increment_bytes, **options})
    if source.changes == "follow":
        reader = reader.option("readChangeFeed", "true")
    if source.table:
        return select_needed(as_changes(reader.table(source.table)), settings)
    reader = reader.format(source.reader())
    if not source.is_files():
        return select_needed(as_changes(reader.load(source.path)), settings)
    return reader.schema(schema).option("maxFileAge", _FOREVER).load(_as_directory(str(source.path)))


def select_needed(frame: DataFrame, settings: Settings, *more: Column) -> DataFrame:
    """The columns that are kept, and those that the text is made of; each row once a variant, if so asked."""
    own, raw = [name for name in frame.columns if not name.startswith(OWN)], raw_column(settings.input)
    changes = [column(name) for name in (CHANGE, ORDER) if name in frame.columns]
    kept = own if settings.output.columns is None else settings.output.columns
    fold = _folding(tells_case(frame.sparkSession))
    folded = set(map(fold, kept))
    beside = [*settings.input_columns(), *([raw] if raw and raw in own else [])]
    names = [*kept, *(name for name in beside if fold(name) not in folded)]
    return explode_variants(frame.select(*map(column, names), *changes, *more), settings)


def kept_columns(frame: DataFrame, settings: Settings) -> list[str]:
    """Columns of the input that are in the output: those that the settings name, or all but our own.

    A record that does not fit is kept in any case.
    """
    named, raw = settings.output_columns(), raw_column(settings.input)
    if named is None:
        return [name for name in frame.columns if not name.startswith(OWN)]
    return [*named, raw] if raw and raw in frame.columns and raw not in named else named


def explode_variants(frame: DataFrame, settings: Settings) -> DataFrame:
    """Each row once a variant, where each is to be a row of its own."""
    from pyspark.sql import functions as F

    if (exploded := settings.exploded()) is None or exploded[0] in frame.columns:
        return frame
    name, values = exploded
    return frame.withColumn(name, F.explode(F.array(*(F.lit(value) for value in values))))


def check_columns(columns: list[str], settings: Settings, *, tells_case: bool = False) -> None:
    """Check the input's columns against what the job reads and writes; Spark tells case apart only where told so."""
    fold = _folding(tells_case)
    lowered = [fold(column) for column in columns]
    twice = sorted({column for column in columns if lowered.count(fold(column)) > 1})
    if twice:
        raise InputError(
            f"the input has several columns named {', '.join(twice)}; rename them in a `query`, or set "
            "spark.sql.caseSensitive in spark.conf where they differ in case alone"
        )
    if own := [name for name in columns if name.lower().startswith(OWN)]:
        raise InputError(
            f"the input has a column {own[0]!r}; names that begin with {OWN} are gristmill's, so rename it"
        )
    wanted = {
        **{f"score.{name}": columns for name, columns in settings.columns_by_setting().items()},
        "input.key": settings.input.key,
        "output.columns": settings.output.columns or [],
        "output.partition_by": [name for name in settings.output.partition_by if name not in _exploded(settings)],
    }
    if (exploded := settings.exploded()) and fold(exploded[0]) in lowered:
        raise InputError(f"score.variants adds a column {exploded[0]!r}, but the input has one; name it otherwise")
    for setting, names in wanted.items():
        absent = [name for name in names if fold(name) not in lowered]
        if absent:
            raise InputError(
                f"{setting} names {', '.join(absent)}, but the input's columns are: {', '.join(columns) or 'none'}"
            )
    named = list(map(fold, settings.output.columns or []))
    if twice := [name for name in settings.output.columns or [] if named.count(fold(name)) > 1]:
        raise InputError(f"output.columns names {twice[0]} twice")
    kept = [*(lowered if settings.output.columns is None else named), *map(fold, _exploded(settings))]
    if taken := [name for name in added_columns(settings) if fold(name) in kept]:
        raise InputError(tell_taken(taken[0], settings))


def _exploded(settings: Settings) -> tuple[str, ...]:
    """The column that the job adds to those of the input, if it does."""
    return (exploded[0],) if (exploded := settings.exploded()) else ()


def _folding(tells_case: bool) -> Callable[[str], str]:
    """What makes names of the same column alike."""
    return str if tells_case else str.lower


def check_types(frame: DataFrame, settings: Settings) -> None:
    """Refuse columns that Parquet cannot hold, before anything is scored.

    Raises:
        InputError: One is to be kept.
    """
    columns = settings.output.columns
    kept = None if columns is None else {name.lower() for name in columns}
    for field in frame.schema.fields:
        if (kept is None or field.name.lower() in kept) and _UNWRITABLE.search(field.dataType.json()):
            raise InputError(
                f"the input's column {field.name!r} is of type {field.dataType.simpleString()}, which Parquet does "
                "not hold; cast it in a `query`, or leave it out of output.columns"
            )
    by = {name.lower() for name in settings.output.partition_by}
    for field in frame.schema.fields:
        kind = field.dataType.simpleString()
        if field.name.lower() in by and kind not in _OF_DIRECTORIES:
            raise InputError(
                f"output.partition_by names {field.name}, which is of type {kind}; a directory's name can be of a "
                "string, a whole number, a boolean or a date, so cast it in a `query`"
            )
    key = {name.lower() for name in settings.input.key} if settings.output.mode == "merge" else set()
    for field in frame.schema.fields:
        kind = field.dataType.simpleString()
        if field.name.lower() in key and not can_hash(kind):
            raise InputError(
                f"input.key names {field.name}, which is of type {kind}, and tells no rows apart for a merge"
            )


def _file_options(source: InputSettings) -> dict[str, Any]:
    """Options of whatever reads the input's files.

    Partitions are the directories below the path; of a pattern or a single file there are none, unless `basePath` is
    among the options.
    """
    path = str(source.path)
    below = {} if GLOB.search(path) or Folder(path).is_file() else {"basePath": path}
    return {**below, **record_options(source), **_TELL_ALL}


def _as_directory(path: str) -> str:
    """A single file as a pattern that fits it alone: a stream is of a directory or of a pattern."""
    return f"{path[:-1]}[{path[-1]}]" if Folder(path).is_file() else path


def _provider(spark: SparkSession, table: str) -> str:
    """The format of a catalog table; empty for a view, or where the catalog does not tell."""
    try:
        rows = spark.sql(f"DESCRIBE TABLE EXTENDED {table}").where("col_name = 'Provider'").collect()
    except SPARK_ERRORS:  # what is wrong with the table is told when it is read
        return ""
    return str(rows[0]["data_type"]).lower() if rows else ""


def _load(spark: SparkSession, source: InputSettings, schema: StructType | None) -> DataFrame:
    if source.table:
        return spark.table(source.table)
    if source.query:
        return spark.sql(source.query)
    options = record_options(source) if source.is_files() else source.options
    reader = spark.read.format(source.reader()).options(**options)
    if schema is not None:
        reader = reader.schema(schema)
    elif source.ignore_corrupt:
        reader = reader.option("ignoreCorruptFiles", "true")  # for their schema alone
    return reader.load(source.path)
