"""The UDF's function for Spark 4.0, which has no Arrow UDFs: the same Arrow in between, pandas at both ends."""

# Spark reads the type hints of this function at run time, so they cannot be strings (no `annotations` future), and
# pandas is imported here alone, since it costs each worker a third of a second.
from collections.abc import Callable, Iterable
from typing import Any, Iterator  # noqa: UP035 - Spark 4.0 knows this spelling

import pandas as pd
import pyarrow as pa

from udfs.batch_api.spec import BatchSpec
from udfs.spec import ScoreSpec
from udfs.tasks.text_classification import name_texts
from udfs.tasks.text_generation import make_asker
from udfs.text.pairs import name_columns
from udfs.text.templates import Renderer, pack_texts, read_objects
from udfs.text.values import from_objects
from udfs.worker.requests import score_requests
from udfs.worker.scoring import score


def make_pandas_function(spec: ScoreSpec, whereabouts: Callable[[], dict[str, Any]]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that scores as a spec asks.

    pandas tells less than Arrow. A job casts what it can before (`jobs.input.kinds`); elsewhere an integer beside nulls
    is 3.0 for 3, and a string that is not UTF-8, or a timestamp of a year before 1678 or after 2261, ends the task.
    """

    def score_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for result in score(read_pandas_texts(batches, make_asker(spec), name_texts(spec)), spec, **whereabouts()):
            yield pa.Table.from_struct_array(result).to_pandas(maps_as_pydicts="strict")

    return score_pandas


def make_pandas_answerer(ask: BatchSpec, whereabouts: Callable[[], dict[str, Any]]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that answers requests, whose fields are strings all of them."""

    def answer_pandas(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for result in score_requests(map(_as_struct, batches), ask, **whereabouts()):
            yield pa.Table.from_struct_array(result).to_pandas()

    return answer_pandas


def _as_struct(batch: pd.DataFrame) -> pa.StructArray:
    columns = {name: [None if pd.isna(value) else str(value) for value in column] for name, column in batch.items()}
    return pa.StructArray.from_arrays([pa.array(c, pa.string()) for c in columns.values()], list(map(str, columns)))


def make_pandas_reader(spec: ScoreSpec) -> Callable[[Any], Any]:
    """The function of a pandas UDF that only reads the texts that such a one would score."""

    def read_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for texts in read_pandas_texts(batches, make_asker(spec)):
            yield pa.Table.from_struct_array(texts).to_pandas()

    return read_pandas


def read_pandas_texts(
    batches: Iterable[pd.Series | pd.DataFrame | tuple[pd.Series, ...]],
    render: Renderer | None,
    names: tuple[str, ...] = (),
) -> Iterator[pa.StructArray]:
    """The texts of rows, as `pack_texts` has them."""
    for batch in batches:
        name = render.chat if render is not None and render.chat is not None else "text"
        if isinstance(batch, tuple):
            columns = name_columns(batch, names)
        else:
            columns = dict(batch.items()) if isinstance(batch, pd.DataFrame) else {name: batch}
        yield pack_texts(read_objects({name: from_objects(column) for name, column in columns.items()}, render))
