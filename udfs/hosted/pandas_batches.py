"""As `udfs.worker.pandas_batches`, for hosted models: pandas at both ends, for Spark 4.0, which has no Arrow UDFs."""

# Spark reads the type hints of these functions at run time, so they cannot be strings (no `annotations` future).
from collections.abc import Callable
from typing import Any, Iterator  # noqa: UP035 - Spark 4.0 knows this spelling

import pandas as pd
import pyarrow as pa

from udfs.hosted.answering import REPLY, TEXT, answer_rows
from udfs.hosted.asking import ask_rows
from udfs.hosted.live import score_live
from udfs.hosted.tasks import make_hosted
from udfs.spec import ScoreSpec
from udfs.tasks.text_classification import name_texts
from udfs.tasks.text_generation import make_asker
from udfs.worker.pandas_batches import read_pandas_texts


def make_pandas_asker(spec: ScoreSpec[Any]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that tells what a provider is asked."""

    def ask_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        task = make_hosted(spec)
        for texts in read_pandas_texts(batches, make_asker(spec), name_texts(spec)):
            yield _to_pandas(ask_rows(texts, task))

    return ask_pandas


def make_pandas_answerer(spec: ScoreSpec[Any]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that gives rows the replies to their requests."""

    def answer_pandas(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for result in answer_rows((_join(batch, spec) for batch in batches), make_hosted(spec)):
            yield _to_pandas(result)

    return answer_pandas


def make_pandas_caller(spec: ScoreSpec[Any]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that asks a provider live."""

    def call_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for result in score_live(read_pandas_texts(batches, make_asker(spec), name_texts(spec)), spec):
            yield _to_pandas(result)

    return call_pandas


def _join(batch: pd.DataFrame, spec: ScoreSpec[Any]) -> pa.StructArray:
    """Texts that are read, beside their lines."""
    column = batch[TEXT]
    if column.map(lambda value: isinstance(value, dict)).any():
        names = list(next(value for value in column if isinstance(value, dict)))
        column = pd.DataFrame({name: [(value or {}).get(name) for value in column] for name in names})
    (texts,) = read_pandas_texts([column], make_asker(spec), name_texts(spec))
    lines = [line if isinstance(line, str) else None for line in batch[REPLY]]
    return pa.StructArray.from_arrays([texts, pa.array(lines, pa.string())], [TEXT, REPLY])


def _to_pandas(result: pa.StructArray) -> pd.DataFrame:
    return pa.Table.from_struct_array(result).to_pandas(maps_as_pydicts="strict")
