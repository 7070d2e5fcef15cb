"""A fuzz of tables: whatever a table holds, no row is lost, and all ways read the same text."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pyspark.sql import conversion
from pyspark.sql.pandas.types import from_arrow_type

from tests.conftest import MINILM
from tests.drawn_tables import tables, templates
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
@thorough
@given(data=st.data())
def test_no_row_of_many_drawn_tables_is_lost(task: Any, data: st.DataObject) -> None:
    _check_rows(data, task)


@quick
@given(data=st.data())
def test_pandas_tells_the_texts_of_a_drawn_table(data: st.DataObject) -> None:
    _check_pandas(data)


@pytest.mark.slow
@thorough
@given(data=st.data())
def test_pandas_tells_the_texts_of_many_drawn_tables(data: st.DataObject) -> None:
    _check_pandas(data)
