"""What the files of a later night have that the first did not, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from jobs.errors import SPARK_ERRORS, InputError
from jobs.input.checkpoint import path_of
from jobs.input.files import name_some
from jobs.input.records import as_pattern, has_headers, raw_column, record_options, tell_columns
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

_LOOKED_INTO = 8  # files; each is looked into by itself
_NUMBER = re.compile(r"[-+]?\d+")
_AS_WRITTEN = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9]|\.0)?")  # a number that has no other way to be written
_OF_NUMBERS = ("int", "bigint", "double", "decimal")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_INFERENCE = "spark.sql.sources.partitionColumnTypeInference.enabled"


def tell_drift(
    spark: SparkSession, settings: Settings, frame: DataFrame, left: Collection[str], *, is_first: bool = False
) -> list[str]:
    """Warnings about columns that files which are not scored yet add or lack; CSV with headers tells as it is read.

    Args:
        spark: The session.
        settings: The job.
        frame: The whole input, by the schema of the first run.
        left: Paths of the files that are not scored yet.
        is_first: It is the first run, whose schema of JSON and XML was made of all the files.

    Raises:
        InputError: One lacks a column that is needed; a directory has a value that its column does not hold.
    """
    source, uris = settings.input, sorted(uri for uri in frame.inputFiles() if path_of(uri) in left)
    told = tell_partitions(frame.schema, uris)
    by_record = source.format.lower() in ("json", "xml")
    if has_headers(source) or (is_first and by_record):
        return told
    directories = {name.lower() for uri in uris for name, _ in _directories(uri)}
    raw = raw_column(source)
    held = {name.lower(): name for name in frame.columns if name != raw and name.lower() not in directories}
    # A field that JSON leaves out is null; in other formats a file without the column is another table's.
    needed = [] if by_record else settings.input_columns()
    options = {name: value for name, value in record_options(source).items() if name.lower() != "basepath"}
    for uri in uris[:_LOOKED_INTO]:
        try:
            names = spark.read.format(source.reader()).options(**options).load(as_pattern(uri)).columns
        except SPARK_ERRORS:  # what is wrong with it is told when it is read
            continue
        found = {name.lower() for name in names}
        new = [name for name in names if name.lower() not in (held.keys() | directories) and name != raw]
        absent = [name for lowered, name in held.items() if lowered not in found]
        told += tell_columns(new, absent, [uri], needed) if found - {raw} else []
    return told


def tell_partitions(schema: StructType, uris: Iterable[str]) -> list[str]:
    """Warnings about directories `NAME=VALUE` that are no columns, or lose how they are written: 007, 1.50, 1D.

    Raises:
        InputError: A value is no number, and its column holds numbers.
    """
    kinds = {field.name.lower(): field.dataType.simpleString() for field in schema.fields}
    new, changed = dict[str, str](), dict[str, str]()
    for uri in uris:
        for name, value in _directories(uri):
            kind = kinds.get(name.lower())
            if kind is None:
                new.setdefault(name, path_of(uri))
            if kind is None or not kind.startswith(_OF_NUMBERS) or value == _NO_VALUE:
                continue
            if kind in ("int", "bigint") and not _NUMBER.fullmatch(value):
                raise InputError(
                    f"the directory {name}={value} of {path_of(uri)} is no {kind}, which its column was when the "
                    f"output was begun; rename it, or set spark.conf: {{{_INFERENCE}: false}} and start afresh with "
                    "--overwrite, so that such values stay text"
                )
            if not _AS_WRITTEN.fullmatch(value):
                changed.setdefault(name, value)
    told = [f"{name}={value} is read as a number, and not kept as it is written; set spark.conf: "
            f"{{{_INFERENCE}: false}} for text" for name, value in changed.items()]  # fmt: skip
    if new:
        files = name_some(sorted(new.values()))
        told.append(f"new partition columns are left out, since the output was begun without them: {', '.join(new)} "
                    f"of {files}")  # fmt: skip
    return told


def _directories(uri: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in path_of(uri).split("/")[:-1] if "=" in part]
    return [(unquote(name), unquote(value)) for name, _, value in parts]
