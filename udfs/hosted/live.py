"""A provider asked live."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from udfs.spec import ScoreSpec


def score_live(batches: Iterable[pa.Array], spec: ScoreSpec[Any]) -> Iterator[pa.StructArray]:
    raise NotImplementedError
