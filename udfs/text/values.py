"""A column of any type as values that templates read, and a value as text: the one place where both are decided.

Null, a map's missing key and NaN, which pandas has for null, are `NOTHING`. Structs and maps are mappings, arrays are
lists; bytes are UTF-8; timestamps are naive, in the session's time zone; what Python's dates do not reach is text.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from udfs.errors import SpecError

_OFFSET = re.compile(r"Z|(?:UTC|GMT|UT)?([+-])(\d{1,2})(?::?(\d\d))?")
# Before a date or a timestamp that is sent as Spark writes it: bytes that no text begins with.
TIME_MARK = b"\xff\x00gristmill time\x00"
_DIGITS = 15  # a float that was a float32 has more, and hardly another one that a float32 holds
_SURROGATES = re.compile("[\ud800-\udfff]")


class Nothing(str):
    """Null: it renders as nothing, holds nothing, and, as in SQL, is what comes of reckoning with it."""

    __slots__ = ()

    def _null(self, *_: Any, **__: Any) -> Nothing:
        return self

    __call__ = __sub__ = __rsub__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _null
    __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = __round__ = _null
    __mul__ = _null

    def __add__(self, other: Any) -> Any:
        return other if isinstance(other, str) else self

    __radd__ = __add__

    def __eq__(self, other: object) -> bool:
        return other is None or (isinstance(other, str) and not len(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash("")

    def __lt__(self, other: Any) -> bool:
        return isinstance(other, str) and len(other) > 0

    def __le__(self, other: Any) -> bool:
        return isinstance(other, str)

    def __gt__(self, other: Any) -> bool:
        return False

    def __ge__(self, other: Any) -> bool:
        return isinstance(other, str) and not len(other)


NOTHING = Nothing()


class Struct(dict):
    """A struct: a mapping whose fields are known, so that another one is a mistake and not a missing key."""

    __slots__ = ()


def is_nested(kind: pa.DataType) -> bool:
    """A type that is no text by itself."""
    return pa.types.is_nested(kind) and not is_variant(kind)


def is_variant(kind: pa.DataType) -> bool:
    """How Spark sends a VARIANT: as a struct of two fields, one of which is marked."""
    return pa.types.is_struct(kind) and any((field.metadata or {}).get(b"variant") == b"true" for field in kind)


def to_values(column: pa.Array) -> list[Any]:
    """A column's values, as templates read them.

    Raises:
        SpecError: It is of a type that nobody can read.
    """
    kind = column.type
    for fits, read in _READERS:
        if fits(kind):
            return read(column)
    raise SpecError(f"a text cannot be made of {kind}; cast it to a string")


def _read_plain(column: pa.Array) -> list[Any]:
    return _without_nulls(column, column.to_pylist())


def _without_nulls(column: pa.Array, values: list[Any]) -> list[Any]:
    return [NOTHING if value is None else value for value in values] if column.null_count else values


def _read_strings(column: pa.Array) -> list[Any]:
    try:
        return _without_nulls(column, column.to_numpy(zero_copy_only=False).tolist())
    except (UnicodeDecodeError, pa.ArrowException):
        return _read_bytes(column.cast(pa.large_binary()))


def _read_bytes(column: pa.Array) -> list[Any]:
    return [NOTHING if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()]


def _read_decimals(column: pa.Array) -> list[Any]:
    """Decimals; those without a fraction are integers, as `from_objects` has them."""
    if column.type.scale:
        return _read_plain(column)
    return [NOTHING if value is None else int(value) for value in column.to_pylist()]


def _read_floats(column: pa.Array) -> list[Any]:
    values = column.to_numpy(zero_copy_only=False)
    told = values.tolist() if values.dtype == np.float64 else [float(str(value)) for value in values]
    return _without_nan(told)


def _without_nan(values: list[float]) -> list[Any]:
    return [NOTHING if value != value else value for value in values]


def _read_dates(column: pa.Array) -> list[Any]:
    return _read_times(column.cast(pa.timestamp("s")), lambda value: value.date(), "D")


def _read_timestamps(column: pa.Array) -> list[Any]:
    if column.type.tz is not None:
        column = _to_local(column)
    return _read_times(column, lambda value: value, "us")


def _to_local(column: pa.Array) -> pa.Array:
    zone = column.type.tz
    if offset := _OFFSET.fullmatch(zone):  # as Java writes zones, and Arrow does not
        sign, hours, minutes = offset.groups()
        zone = f"{sign or '+'}{hours or 0:0>2}:{minutes or 0:0>2}"
    try:
        return pc.local_timestamp(column.cast(pa.timestamp(column.type.unit, zone)))
    except pa.ArrowInvalid as error:
        raise SpecError(f"the session's time zone {zone!r} is not known here; name one as in Europe/Berlin") from error


def _read_times(column: pa.Array, take: Callable[[datetime.datetime], Any], unit: str) -> list[Any]:
    """Points in time of no zone; text where Python has no such year."""
    try:
        return [NOTHING if value is None else take(value) for value in _in_us(column).to_pylist()]
    except (pa.ArrowInvalid, ValueError, OverflowError):
        if len(column) > 1:
            return [value for number in range(len(column)) for value in _read_times(column[number:][:1], take, unit)]
        count = column.cast(pa.int64())[0].as_py()
        written = str(np.datetime64(count, column.type.unit).astype(f"datetime64[{unit}]"))
        year, rest = written.lstrip("-").split("-", 1)
        return [f"{'-' if written[0] == '-' else '+'}{year:0>4}-{_trim_fraction(rest.replace('T', ' '))}"]


def _in_us(column: pa.Array) -> pa.Array:
    return column.cast(pa.timestamp("us"), safe=column.type.unit != "ns")


def _trim_fraction(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _read_clock(column: pa.Array) -> list[Any]:
    return _read_plain(column.cast(pa.time64("us"), safe=False))


def _read_durations(column: pa.Array) -> list[Any]:
    kind = pa.duration("us")
    spans = column.cast(kind, safe=False).cast(pa.int64()).to_pylist()
    return [NOTHING if span is None else _tell_duration(span) for span in spans]


def _tell_duration(span: int) -> str:
    """Microseconds as Spark casts an interval."""
    seconds, fraction = divmod(abs(span), 1_000_000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    told = _trim_fraction(f"{days} {hour:02}:{minute:02}:{second:02}.{fraction:06}")
    return f"INTERVAL '{'-' if span < 0 else ''}{told}' DAY TO SECOND"


def _read_variants(column: pa.Array) -> list[Any]:
    from pyspark.sql.types import VariantVal  # where there is a VARIANT, there is Spark

    return [
        NOTHING if value is None else VariantVal(value["value"], value["metadata"]).toJson()
        for value in column.to_pylist()
    ]


def _read_structs(column: pa.Array) -> list[Any]:
    names = [field.name for field in column.type]
    fields = [to_values(field) for field in column.flatten()]
    rows = zip(*fields, strict=True) if fields else [()] * len(column)
    return _mask(column, [Struct(zip(names, row, strict=True)) for row in rows])


def _read_lists(column: pa.Array) -> list[Any]:
    values = _held(column, column.values)
    return _mask(column, [values[start:end] for start, end in _cuts(column)])


def _read_maps(column: pa.Array) -> list[Any]:
    keys, items = map(_as_key, _held(column, column.keys)), _held(column, column.items)
    pairs = list(zip(keys, items, strict=True))
    return _mask(column, [dict(pairs[start:end]) for start, end in _cuts(column)])


def _held(column: pa.Array, values: pa.Array) -> list[Any]:
    """The values that the lists of a column hold; it may be a slice."""
    start, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    return to_values(values.slice(start, end - start))


def _cuts(column: pa.Array) -> Iterator[tuple[int, int]]:
    offsets = column.offsets.to_numpy()
    return pairwise((offsets - offsets[0]).tolist())


def _mask(column: pa.Array, values: list[Any]) -> list[Any]:
    if not column.null_count:
        return values
    return [value if valid else NOTHING for value, valid in zip(values, column.is_valid().to_pylist(), strict=True)]


def _as_key(key: Any) -> Any:
    return to_text(key) if isinstance(key, dict | list) else key


_READERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (lambda kind: kind in (pa.string(), pa.large_string(), pa.string_view()), _read_strings),
    (lambda kind: pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind), _read_plain),
    (pa.types.is_floating, _read_floats),
    (pa.types.is_decimal, _read_decimals),
    (pa.types.is_date, _read_dates),
    (pa.types.is_timestamp, _read_timestamps),
    (pa.types.is_time, _read_clock),
    (pa.types.is_duration, _read_durations),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), _read_bytes),
    (pa.types.is_map, _read_maps),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind), _read_lists),
    (is_variant, _read_variants),
    (pa.types.is_struct, _read_structs),
)


def from_objects(values: Iterable[Any]) -> list[Any]:
    """What pandas holds of a column, as `to_values` has it; structs within it are maps, since pandas tells no more."""
    if getattr(values, "dtype", None) == np.float32:
        return _without_nan([float(str(value)) for value in np.asarray(values)])
    return [_from_object(value) for value in values]


def _from_object(value: Any) -> Any:
    match value:
        case None:
            return NOTHING
        case Decimal() if value.as_tuple().exponent == 0:
            return int(value)  # so a job sends integers, which pandas would make floats of beside nulls
        case str() | bool() | int() | Decimal():
            return value
        case float() | np.floating():
            return _from_float(value)
        case bytes() | bytearray():
            value = bytes(value)
            return _read_written(value) if value.startswith(TIME_MARK) else value.decode("utf-8", "replace")
        case datetime.timedelta():
            return to_text(value)
        case np.generic():
            return value.item()
        case Mapping():
            return {_as_key(_from_object(key)): _from_object(item) for key, item in value.items()}
        case list() | tuple() | np.ndarray():
            return from_objects(value)
    if str(value) in ("NaT", "<NA>"):
        return NOTHING
    if hasattr(value, "to_pydatetime"):
        return value.floor("us").to_pydatetime()
    return value.toJson() if hasattr(value, "toJson") else value


def _read_written(value: bytes) -> Any:
    """A date or a timestamp that was sent as Spark writes it; text where Python has no such year."""
    written = value[len(TIME_MARK) :].decode()
    kind = datetime.datetime if " " in written else datetime.date
    try:
        return kind.fromisoformat(written)
    except ValueError:
        return written


def _from_float(value: Any) -> Any:
    """A float; one that looks like a float32 has the digits of that, since in a struct pandas has Python's own."""
    if value != value:
        return NOTHING
    with np.errstate(over="ignore"):
        short = np.float32(value)
    is_short = float(short) == value and (isinstance(value, np.float32) or len(repr(float(value))) > _DIGITS)
    return float(str(short)) if is_short else float(value)


def to_text(value: Any) -> str:
    """A value as it stands in a text.

    Raises:
        TypeError: It is none: a function, say, that a template names and does not call.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _tell_odd(value)
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Decimal():
            return format(value, "f")
        case datetime.datetime():
            return _trim_fraction(value.isoformat(" ", "microseconds"))
        case datetime.time():
            return _trim_fraction(value.isoformat("microseconds"))
        case datetime.date():
            return value.isoformat()
        case datetime.timedelta():
            return _tell_duration(value // datetime.timedelta(microseconds=1))
        case bytes():
            return value.decode("utf-8", "replace")
        case Mapping() | list() | tuple() | set() | Iterator():
            return to_json(value)
    raise TypeError(f"{type(value).__name__} is no text")


def _tell_odd(value: float) -> str:
    return "" if value != value else "Infinity" if value > 0 else "-Infinity"


def to_json(value: Any, *, nulls: bool = False) -> str:
    """A value as JSON; null is left out, unless it is asked for."""
    match value:
        case Mapping():
            told = ((to_text(key), item) for key, item in value.items() if nulls or not is_nothing(item))
            return "{" + ", ".join(f"{_quote(key)}: {to_json(item, nulls=nulls)}" for key, item in told) + "}"
        case list() | tuple() | set() | Iterator():
            items = (item for item in value if nulls or not is_nothing(item))
            return "[" + ", ".join(to_json(item, nulls=nulls) for item in items) + "]"
    if is_nothing(value):
        return "null"
    written = to_text(value)
    is_bare = isinstance(value, bool | int | Decimal | float) and "Infinity" not in written
    return written if is_bare else _quote(written)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def is_nothing(value: Any) -> bool:
    """Null, or what a template has come by instead of a value."""
    return value is None or isinstance(value, Nothing) or value != value


def is_blank(value: Any) -> bool:
    """Null, blank, or made of nothing else."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    if isinstance(value, list):
        return all(map(is_blank, value))
    return is_nothing(value)


def to_strings(texts: list[str | None]) -> pa.Array:
    """Texts as Arrow has them; half of a surrogate pair, which no UTF-8 holds, is U+FFFD."""
    try:
        return pa.array(texts, pa.string())
    except (UnicodeEncodeError, pa.ArrowInvalid):
        return pa.array([text if text is None else _SURROGATES.sub("\ufffd", text) for text in texts], pa.string())
