"""Tables drawn by hypothesis: columns of every type that Spark has, odd values in them, and templates over them."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

_NAMES = (
    "title",
    "items",
    "values",
    "range",
    "self",
    "col",
    "if",
    "a b",
    "a-b",
    "a.b",
    "Title",
    "ü",
    "keys",
    "loop",
    "_x",
)
_TEXTS = ("", " ", "tea", "a\x00b", "\u2028", "\U0001f469\u200d", "\ufe0f", "{{ x }}", "None", "null", "İ", "x" * 3000)
_BYTES = (b"", b"tea", b"\xff\xfe", b"a\xc3", b"\xed\xa0\x80", "é".encode("latin-1"), b"\x00")
_FLOATS = (0.0, -0.0, 4.1, 0.1, 1e-7, 1e300, 16777217.0, float("nan"), float("inf"), float("-inf"))
_ZONES = (None, "UTC", "America/New_York", "+05:30", "GMT+8")
_TAME = (None, "America/New_York")  # a session has one zone, and pandas does not know them all
_US = 2**31 * 1_000_000  # 68 years around 1970, in which pandas has every zone's offset
_CONTEXT = decimal.Context(prec=38)


def leaf_types(*, wild: bool) -> st.SearchStrategy[pa.DataType]:
    return st.one_of(
        st.sampled_from([pa.string(), pa.binary(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()]),
        st.sampled_from([pa.float32(), pa.float64(), pa.date32(), pa.duration("us"), pa.time64("ns"), pa.null()]),
        st.sampled_from([pa.decimal128(10, 2), pa.decimal128(38, 18), pa.decimal128(5, 0)]),
        st.sampled_from(_ZONES if wild else _TAME).map(lambda zone: pa.timestamp("us", zone)),
    )


def _struct(kinds: list[pa.DataType], names: list[str]) -> pa.DataType:
    return pa.struct(list(zip(names, kinds, strict=False)))


def _names(most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(_NAMES), min_size=most, max_size=most, unique=True)


def types(*, wild: bool) -> st.SearchStrategy[pa.DataType]:
    keys = st.sampled_from([pa.string(), pa.int32(), pa.date32(), pa.bool_()])
    return st.recursive(
        leaf_types(wild=wild),
        lambda inner: st.one_of(
            inner.map(pa.list_),
            st.tuples(keys, inner).map(lambda pair: pa.map_(*pair)),
            st.tuples(st.lists(inner, min_size=1, max_size=3), _names(3)).map(lambda pair: _struct(*pair)),
        ),
        max_leaves=4,
    )


def values(kind: pa.DataType, *, wild: bool, nulls: bool = True) -> st.SearchStrategy[Any]:
    """Values of a type; wild ones are also such that Python or pandas do not hold."""
    drawn = _present(kind, wild=wild)
    return st.one_of(st.none(), drawn, drawn) if nulls else drawn


def _present(kind: pa.DataType, *, wild: bool) -> st.SearchStrategy[Any]:
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: values(field.type, wild=wild) for field in kind})
    if pa.types.is_map(kind):
        key = values(kind.key_type, wild=wild, nulls=False)
        return st.dictionaries(key, values(kind.item_type, wild=wild), max_size=2).map(lambda d: list(d.items()))
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type, wild=wild), max_size=3)
    if pa.types.is_string(kind):
        return st.one_of(st.sampled_from(_TEXTS), st.text(max_size=8))
    if pa.types.is_binary(kind):
        return st.one_of(st.sampled_from(_BYTES), st.binary(max_size=8))
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind):
        bits = kind.bit_width - 1
        return st.integers(-(2**bits), 2**bits - 1)
    if pa.types.is_floating(kind):
        width = kind.bit_width
        drawn = st.one_of(st.sampled_from(_FLOATS), st.floats(width=width))
        return drawn.map(lambda value: pa.scalar(value, kind).as_py()).filter(
            lambda value: wild or _is_told(value, width)
        )
    if pa.types.is_decimal(kind):
        digits = st.integers(-(10**kind.precision) + 1, 10**kind.precision - 1)
        return digits.map(lambda n: decimal.Decimal(n).scaleb(-kind.scale, _CONTEXT))
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_date(kind):
        return st.integers(-10_000_000, 10_000_000) if wild else st.integers(-100_000, 100_000)
    if pa.types.is_time(kind):
        return st.integers(0, 86_399_999_999).map(lambda n: n * 1000)
    bound = 2**62 if wild else _US
    return st.integers(-bound, bound)


def _is_told(value: float, width: int) -> bool:
    """Whether pandas tells a double from a float32 in a struct: it does not where both have the same value."""
    return width == 32 or len(repr(value)) < 15 or abs(value) > 3e38 or float(np.float32(value)) != value


@st.composite
def tables(draw: Any, *, wild: bool, rows: int = 4, columns: int = 3) -> pa.StructArray:
    """A column of structs, as Spark sends the columns that a template reads."""
    names = draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=columns, unique=True))
    kinds = [draw(types(wild=wild)) for _ in names]
    count = draw(st.integers(1, rows))
    arrays = []
    for kind in kinds:
        array = pa.array([draw(values(kind, wild=wild)) for _ in range(count)], kind)
        arrays.append(spoil(array) if wild else array)
    return pa.StructArray.from_arrays(arrays, names)


def spoil(array: pa.Array) -> pa.Array:
    """Strings of which some are no UTF-8 any more, as Spark may send them."""
    if not pa.types.is_string(array.type):
        return array
    told = [None if text is None else text.encode().replace(b"a", b"\xff") for text in array.to_pylist()]
    return pa.array(told, pa.binary()).view(pa.string())


_FILTERS = ("upper", "trim", "length", "default('-')", "tojson", "string", "title", "round(1)", "list", "first", "int")


@st.composite
def templates(draw: Any, table: pa.StructType) -> str:
    """A template that reads every column of a table, each in a way that its type knows."""
    return "".join(draw(_snippets(f"col({field.name!r})", field.type)) for field in table)


def _snippets(told: str, kind: pa.DataType) -> st.SearchStrategy[str]:
    plain = st.sampled_from(
        [f"{{{{ {told} }}}}", f"{{{{ {told} ~ '!' }}}}", f"{{% if {told} %}}yes{{% endif %}}{{{{ {told} }}}}"]
    )
    filtered = st.sampled_from(_FILTERS).map(lambda name: f"{{{{ {told} | {name} }}}}")
    ways = [plain, plain, filtered]
    if pa.types.is_struct(kind):
        ways += [_snippets(f"{told}[{field.name!r}]", field.type) for field in kind]
        ways += [_snippets(f"{told}.{field.name}", field.type) for field in kind if field.name.isidentifier()]
    elif pa.types.is_map(kind):
        loop = f"{{% for k, v in {told}.items() %}}{{{{ k }}}}={{{{ v ~ ';' }}}}{{% endfor %}}"
        ways += [st.just(loop), _snippets(f"{told}.tea", kind.item_type)]
    elif pa.types.is_list(kind):
        body = _snippets("each", kind.value_type)
        ways += [body.map(lambda inner: f"{{% for each in {told} %}}{inner}{{% endfor %}}")]
        ways += [st.just(f"{{{{ {told} | join(', ') }}}}"), _snippets(f"{told}[0]", kind.value_type)]
    return st.one_of(*ways)
