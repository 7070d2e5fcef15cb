"""The UDF's function for Spark 4.0, which has no Arrow UDFs: the same Arrow in between, pandas at both ends."""

# Spark reads the type hints of this function at run time, so they cannot be strings (no `annotations` future), and
# pandas is imported here alone, since it costs each worker a third of a second.
from collections.abc import Callable
from typing import Any, Iterator  # noqa: UP035 - Spark 4.0 knows this spelling

import pandas as pd
import pyarrow as pa

from udfs.spec import ScoreSpec
from udfs.worker.scoring import score


def make_pandas_function(spec: ScoreSpec, whereabouts: Callable[[], dict[str, Any]]) -> Callable[[Any], Any]:
    """The function of a pandas UDF that scores as a spec asks.

    pandas has no integer with nulls: a template over such a column sees 3.0 for 3.
    """

    def score_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for result in score((_to_arrow(batch) for batch in batches), spec, **whereabouts()):
            yield pa.Table.from_struct_array(result).to_pandas(maps_as_pydicts="strict")

    return score_pandas


def _to_arrow(batch: pd.Series | pd.DataFrame) -> pa.Array:
    if isinstance(batch, pd.DataFrame):
        return pa.Table.from_pandas(batch, preserve_index=False).to_struct_array().combine_chunks()
    return pa.Array.from_pandas(batch, type=pa.string())
