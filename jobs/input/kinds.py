"""Types of the input's columns: whether a text can be made of them, and how Spark sends them to who makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.errors import InputError
from jobs.settings import Settings
from udfs.tasks.text_generation import make_asker
from udfs.text.templates import advise_template
from udfs.text.values import TIME_MARK, is_nested

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, SparkSession
    from pyspark.sql.types import DataType, StructType


def column(name: str) -> Column:
    """A column by its name, whatever stands in it."""
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")


def tells_case(spark: SparkSession) -> bool:
    """Whether columns may differ in case alone."""
    return str(spark.conf.get("spark.sql.caseSensitive", "false")).lower() == "true"


def spelt(columns: list[str], name: str) -> str:
    """A column's name as the input spells it."""
    return name if name in columns else next(column for column in columns if column.lower() == name.lower())


def check_text_types(schema: StructType, settings: Settings) -> None:
    """Check that what the text is made of is there, in nested columns too, and can be text.

    Raises:
        InputError: It is not; the message says what to write instead.
    """
    import pyarrow as pa

    names = settings.input_columns()
    kinds = {name: as_arrow(schema[spelt(schema.names, name)].dataType) for name in names}
    for setting, name in settings.plain_columns().items():
        if is_nested(kind := kinds[name]):
            told = schema[spelt(schema.names, name)].dataType.simpleString()
            advice = advise_template(name if name.isidentifier() else f"col({name!r})", kind)
            raise InputError(f"score.{setting} names {name}, which is {told[:200]} and no text by itself; {advice}")
    ask = make_asker(settings.spec())
    if ask is None:
        return
    known = {name: kinds.get(name, pa.string()) for name in ask.columns}  # a variant is no column of the input
    if missing := ask.find_missing([pa.field(name, kind) for name, kind in known.items()]):
        raise InputError(f"score.{' and '.join(settings.columns_by_setting())}: {missing}")


def as_arrow(kind: DataType) -> pa.DataType:
    """What a type looks like in Arrow, as far as templates are concerned."""
    import pyarrow as pa
    from pyspark.sql import types as T

    match kind:
        case T.StructType():
            return pa.struct([pa.field(field.name, as_arrow(field.dataType)) for field in kind.fields])
        case T.ArrayType():
            return pa.list_(as_arrow(kind.elementType))
        case T.MapType():
            return pa.map_(as_arrow(kind.keyType), as_arrow(kind.valueType))
        case T.UserDefinedType():
            return as_arrow(kind.sqlType())
        case T.VariantType():
            marked = pa.field("metadata", pa.binary(), nullable=False, metadata={"variant": "true"})
            return pa.struct([pa.field("value", pa.binary(), nullable=False), marked])
        case T.NullType():
            return pa.null()
        case T.DateType() | T.TimestampType() | T.TimestampNTZType():
            return pa.timestamp("us")
        case T.NumericType():
            return pa.float64()
    return pa.string()


def as_sent(value: Column, kind: DataType, *, whole: bool | None = None) -> Column:
    """A column as it is sent to be read: what Arrow cannot carry, or not wholly, is text, as Spark writes it.

    Args:
        value: The column.
        kind: Its type.
        whole: All that Arrow carries arrives as it is; None asks `sends_all`, for a UDF.
    """
    whole = sends_all() if whole is None else whole
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if not _changes(kind, whole=whole):
        return value
    match kind:
        case T.StructType():
            fields = [(F.lit(f.name), as_sent(value.getField(f.name), f.dataType, whole=whole)) for f in kind.fields]
            return F.when(value.isNotNull(), F.named_struct(*(part for field in fields for part in field)))
        case T.ArrayType():
            return F.transform(value, lambda item: as_sent(item, kind.elementType, whole=whole))
        case T.MapType():
            keyed = F.transform_keys(value, lambda key, _: as_sent(key, kind.keyType, whole=whole))
            return F.transform_values(keyed, lambda _, item: as_sent(item, kind.valueType, whole=whole))
        case T.VariantType():
            return F.to_json(value)
        case T.StringType():
            return F.make_valid_utf8(value)
        case T.IntegralType():
            return value.cast("decimal(20, 0)")
        case T.DateType() | T.TimestampType() | T.TimestampNTZType():
            local = value.cast("timestamp_ntz") if isinstance(kind, T.TimestampType) else value
            return F.concat(F.lit(bytearray(TIME_MARK)), local.cast("string").cast("binary"))
    return value.cast("string")


def _changes(kind: Any, *, whole: bool) -> bool:
    """Whether a type, or one within it, is sent otherwise than it is."""
    from pyspark.sql import types as T

    match kind:
        case T.StructType():
            return any(_changes(field.dataType, whole=whole) for field in kind.fields)
        case T.ArrayType():
            return _changes(kind.elementType, whole=whole)
        case T.MapType():
            return _changes(kind.keyType, whole=whole) or _changes(kind.valueType, whole=whole)
        case T.StringType() | T.IntegralType() | T.DateType() | T.TimestampType() | T.TimestampNTZType():
            return not whole
    return isinstance(kind, T.VariantType) or "interval" in kind.typeName()


def sends_all() -> bool:
    """Whether all arrives as it is; pandas UDFs, of Spark 4.0, break on bytes that are no text and on years that pandas
    does not have, and have no integer beside nulls."""
    from udfs.factory import HAS_ARROW_UDF

    return HAS_ARROW_UDF


def hashable(name: str, kind: str) -> Column:
    """A column as Spark can hash it: what it cannot is JSON."""
    from pyspark.sql import functions as F

    return column(name) if can_hash(kind) else F.to_json(F.struct(column(name)))


def can_hash(kind: str) -> bool:
    """Whether Spark spreads rows by a type of column, by its simple name."""
    return not any(word in kind for word in ("map<", "variant", "geometry", "geography"))
