"""A fuzz of tables: whatever a table holds, no row is lost, and all ways read the same text."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pyspark.sql import conversion
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type

from jobs.input.kinds import column
from tests.conftest import MINILM
from tests.drawn_tables import tables, templates, values
from udfs.factory import make_reader
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.text.templates import make_renderer, pack_texts, read_objects, read_texts
from udfs.text.values import from_objects
from udfs.worker.scoring import prepare

ROWS = ("empty_input", "bad_template", "unreadable", "input_too_long")
quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
thorough = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(make_spec(task="feature-extraction", model=MINILM), open_model(MINILM))


def _check_rows(data: st.DataObject, task: Any) -> None:
    """No row is lost, none takes another along, and a window's cut changes no text."""
    window = data.draw(tables(wild=True))
    template = data.draw(templates(window.type))
    spec = make_spec(task="feature-extraction", model=MINILM, template=template)
    prepared = prepare(window, spec, task)
    assert len(prepared.text_of_row) == len(window)
    assert {error.code for error in prepared.failures.values()} <= set(ROWS)
    assert all((prepared.text_of_row[row] < 0) == (row in prepared.failures) for row in range(len(window)))
    render = make_renderer(template)
    read = read_texts(window, render)
    texts = read.texts.to_pylist()
    assert not any(word in str(text) for text in texts for word in ("<built-in", "object at 0x", "Undefined"))
    alone = [read_texts(window[row : row + 1], render) for row in range(len(window))]
    assert [one.texts.to_pylist()[0] for one in alone] == texts
    assert len(texts) == len(window)
    packed = read_texts(pack_texts(read), None)
    assert (packed.texts, packed.failures) == (read.texts, read.failures)


def _check_pandas(data: st.DataObject) -> None:
    """pandas tells the same texts as Arrow, of what it can hold."""
    window = data.draw(tables(wild=False))
    template = data.draw(templates(window.type))
    render = make_renderer(template)
    by_arrow = read_texts(window, render)
    try:
        sent = _as_pandas(window)
    except ValueError:  # pyspark makes no pandas of arrays within arrays where one is null
        reject()
    by_pandas = read_objects({name: from_objects(column) for name, column in sent.items()}, render)
    assert by_pandas.texts.to_pylist() == by_arrow.texts.to_pylist()
    assert by_pandas.failures == by_arrow.failures


def _as_pandas(window: pa.StructArray) -> pd.DataFrame:
    """A window as Spark gives it to a pandas UDF."""
    return conversion.ArrowArrayToPandasConversion.convert(
        window,
        from_arrow_type(window.type),
        timezone="America/New_York",
        struct_in_pandas="dict",
        prefer_int_ext_dtype=True,
        df_for_struct=True,
    )


@quick
@given(data=st.data())
def test_no_row_of_a_drawn_table_is_lost(task: Any, data: st.DataObject) -> None:
    _check_rows(data, task)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@thorough
@given(data=st.data())
def test_no_row_of_many_drawn_tables_is_lost(task: Any, data: st.DataObject) -> None:
    _check_rows(data, task)


@quick
@given(data=st.data())
def test_pandas_tells_the_texts_of_a_drawn_table(data: st.DataObject) -> None:
    _check_pandas(data)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@thorough
@given(data=st.data())
def test_pandas_tells_the_texts_of_many_drawn_tables(data: st.DataObject) -> None:
    _check_pandas(data)


KINDS = {
    "a string": pa.string(),
    "bytes": pa.binary(),
    "yes-no": pa.bool_(),
    "small": pa.int8(),
    "large": pa.int64(),
    "float.32": pa.float32(),
    "float.64": pa.float64(),
    "day": pa.date32(),
    "at": pa.timestamp("us", "UTC"),
    "decimal": pa.decimal128(38, 18),
    "held": pa.struct([("items", pa.float32()), ("many", pa.list_(pa.map_(pa.string(), pa.int32())))]),
    "dates": pa.map_(pa.date32(), pa.list_(pa.decimal128(10, 2))),
}


@settings(quick, max_examples=4, phases=[Phase.generate])  # the first of them is all null
@given(data=st.data())
def test_spark_sends_what_is_read_here(spark: Any, data: st.DataObject) -> None:
    """Drawn rows of many types at once go through Spark by the job's way, by a pandas UDF and not at all."""
    arrays = [pa.array([data.draw(values(kind, wild=False)) for _ in range(40)], kind) for kind in KINDS.values()]
    table = pa.Table.from_arrays(arrays, list(KINDS))
    template = " ".join(f"{{{{ col({name!r}) }}}} {{{{ col({name!r}) ~ '|' }}}}" for name in KINDS)
    spec = make_spec(task="feature-extraction", model=MINILM, template=template)
    told = read_texts(table.to_struct_array().combine_chunks(), make_renderer(template)).texts.to_pylist()
    frame, zone = spark.createDataFrame(table).coalesce(1), spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    try:
        for arrow in (True, False):
            read = frame.select(make_reader(spec, arrow=arrow)(F.struct(*map(column, frame.columns))).alias("read"))
            assert [row[0] for row in read.select("read.*").collect()] == told
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
