"""Rows that the workers write themselves, where what they write is what Spark would: the answers stay out of Java."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.increments.plan import Plan, spec_for, spread_rows, text_of
from jobs.input.kinds import column
from jobs.input.reading import Readable
from jobs.input.sources import kept_columns
from jobs.layout import answer_columns, flat_columns
from jobs.settings import Settings
from udfs.factory import make_writer
from udfs.worker.parts import TEXT, Target

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

_ROW_NOTE, _VERSION_NOTE = "org.apache.spark.sql.parquet.row.metadata", "org.apache.spark.version"
_CODECS = {"none": "none", "uncompressed": "none", "snappy": "snappy", "gzip": "gzip", "zstd": "zstd"}
_INT96, _MICROS = "INT96", "TIMESTAMP_MICROS"


def make_parts(
    read: Readable, settings: Settings, plan: Plan, *, deadline: float | None = None
) -> Callable[[str], DataFrame] | None:
    """What has the rows of an increment scored and written below a directory, and tells what was written (`PARTS`).

    Args:
        read: The increment.
        settings: The job.
        plan: How its rows are spread.
        deadline: In seconds since 1970; rows that are not scored by then fail as `expired`.

    Returns:
        None where Spark has to write: rows that are not scored are among them, columns that are directories, or columns
        or a session's settings of Parquet that pyarrow writes otherwise.
    """
    frame, spark = read.frame, read.frame.sparkSession
    kept = kept_columns(frame, settings)
    types = frame.select(*map(column, kept)).schema
    timestamps = _timestamps(spark, types)
    codec = _CODECS.get(_conf(spark, "spark.sql.parquet.compression.codec", "snappy"))
    if (
        settings.models
        or settings.is_hosted_in_batches()
        or (settings.output.partition_by and not settings.output.is_table)
        or read.counts.malformed
        or not plan.rows
        or codec is None
        or timestamps is None
        or not _writes_alike(spark)
    ):
        return None
    if not all(_is_plain(field.dataType) for field in types):
        return None

    def write(folder: str) -> DataFrame:
        spec = spec_for(spark, settings, deadline=deadline)
        flat = flat_columns(settings)
        notes = {_ROW_NOTE: _with_answers(types, settings).json(), _VERSION_NOTE: spark.version}
        result, apart = settings.output.result, None if flat is None else tuple(flat.items())
        target = Target(folder, tuple(kept), result, codec, notes, int96=timestamps == _INT96, flat=apart)
        function, told = make_writer(spec, target)
        rows = spread_rows(frame, settings, plan)
        sent = [column(name).alias(f"c{number}") for number, name in enumerate(kept)]  # mapInArrow parses names
        return rows.select(*sent, text_of(frame, settings, whole=True).alias(TEXT)).mapInArrow(function, told)

    return write


def _with_answers(types: StructType, settings: Settings) -> StructType:
    """The columns of the files that workers write."""
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    made = [StructField(name, from_arrow_type(kind)) for name, kind in answer_columns(settings).items()]
    return StructType([*types.fields, *made])


def _conf(spark: SparkSession, name: str, default: str) -> str:
    return str(spark.conf.get(name, default)).lower()


def _writes_alike(spark: SparkSession) -> bool:
    """Nothing is asked of Spark's writer that pyarrow does not know of."""
    legacy = _conf(spark, "spark.sql.parquet.writeLegacyFormat", "false") == "true"
    return not legacy and not spark.conf.get("spark.hadoop.parquet.crypto.factory.class", None)


def _timestamps(spark: SparkSession, types: StructType) -> str | None:
    """How timestamps are written; None where pyarrow cannot write them as Spark does, as two kinds in one file."""
    told = types.json()
    asked = _conf(spark, "spark.sql.parquet.outputTimestampType", _INT96).upper()
    if '"timestamp"' not in told:
        return _MICROS
    return asked if asked == _MICROS or (asked == _INT96 and '"timestamp_ntz"' not in told) else None


def _is_plain(kind: DataType) -> bool:
    """A type that is the same thing in Spark's Parquet and in pyarrow's."""
    from pyspark.sql import types as T

    match kind:
        case T.StructType():
            return bool(kind.fields) and all(_is_plain(field.dataType) for field in kind.fields)
        case T.ArrayType():
            return _is_plain(kind.elementType)
        case T.MapType():
            return _is_plain(kind.keyType) and _is_plain(kind.valueType)
        case T.StringType():
            return kind.simpleString() == "string"
    return type(kind) in (T.BooleanType, T.BinaryType, T.DateType, T.TimestampType, T.TimestampNTZType) or isinstance(
        kind, T.NumericType
    )
