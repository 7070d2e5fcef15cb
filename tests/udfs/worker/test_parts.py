"""Rows that a task writes itself are the rows that came in, with their results, and are told as they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.errors import EMPTY_INPUT
from udfs.results import USAGE, result_type
from udfs.worker.parts import DRAFT, TEXT, Target, write_parts

FIELDS = [pa.field("embedding", pa.list_(pa.float32()))]


def batch(numbers: list[int | None]) -> pa.RecordBatch:
    texts = pa.array([None if n is None else str(n) for n in numbers], pa.string())
    return pa.RecordBatch.from_arrays([pa.array(range(len(numbers)), pa.int64()), texts, texts], ["c0", "c1", TEXT])


def score_by(cuts: list[int]) -> Any:
    """A scorer that gives a text its number as a vector, and cuts its results where it likes."""

    def score(texts: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        rows = [value for array in texts for value in array.to_pylist()]
        edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
        for start, end in pairwise(edges):
            yield pa.array([answer(text) for text in rows[start:end]], result_type(FIELDS))

    return score


def answer(text: str | None) -> dict[str, Any]:
    if text is None:
        error = {"code": EMPTY_INPUT.code, "message": EMPTY_INPUT.message}
        return {"embedding": None, "error": error, "usage": dict.fromkeys(USAGE, 0), "truncated": False, "engine": None}
    usage = {"input_tokens": len(text), "output_tokens": 1, "padded_tokens": 9, "cached_tokens": 0}
    engine = f"host:{len(text)}:cpu"
    return {"embedding": [float(text)], "error": None, "usage": usage, "truncated": False, "engine": engine}


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(st.lists(st.none() | st.integers(0, 999), max_size=6), max_size=6),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_each_row_is_written_once_with_its_own_result(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int | None]], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    (told,) = write_parts(
        map(batch, batches), score_by(cuts), Target(str(folder), ("id", "kept"), "prediction", "snappy")
    )
    rows = {name: pq.read_table(folder / name).to_pylist() for name in set(told["file"].to_pylist())}
    assert {path.name for path in folder.iterdir()} == rows.keys()
    assert all(name.endswith(DRAFT) for name in rows)
    wanted = [(i, None if n is None else str(n)) for numbers in batches for i, n in enumerate(numbers)]
    found = sorted(((row["id"], row["kept"]) for of in rows.values() for row in of), key=str)
    assert found == sorted(wanted, key=str)
    for of in rows.values():
        assert all(row["prediction"] == answer(row["kept"]) for row in of)
        assert TEXT not in (of[0] if of else {})
    for part in told.to_pylist():
        own = [row for row in rows[part["file"]] if _group(row) == (part["code"], part["engine"])]
        assert part["size"] == (folder / part["file"]).stat().st_size
        assert part["rows"] == len(own)
        assert part["scored_rows"] == sum(row["prediction"]["usage"]["input_tokens"] > 0 for row in own)
        for name in USAGE:
            assert part[name] == sum(row["prediction"]["usage"][name] for row in own)
        assert all((row["prediction"]["error"] is None) == (part["outcome"] == "succeeded") for row in own)
    assert sum(told["rows"].to_pylist()) == len(wanted)


def _group(row: dict[str, Any]) -> tuple[str | None, str | None]:
    return (row["prediction"]["error"] or {}).get("code"), row["prediction"]["engine"]


def test_a_task_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def score(texts: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        yield from score_by([])(texts)
        raise MemoryError

    with pytest.raises(MemoryError):
        list(write_parts([batch([1, None])], score, Target(str(tmp_path), ("id", "kept"), "prediction", "snappy")))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_many_megabytes_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.worker.parts._GROUP_BYTES", 1)
    (told,) = write_parts(
        [batch([1, 2, None])], score_by([1, 2]), Target(str(tmp_path), ("id", "kept"), "prediction", "zstd")
    )
    (good,) = {row["file"] for row in told.to_pylist() if row["outcome"] == "succeeded"}
    assert pq.ParquetFile(tmp_path / good).num_row_groups == 2


def test_vectors_are_written_without_a_dictionary_and_texts_with_one(tmp_path: Path) -> None:
    (told,) = write_parts([batch([1, 1])], score_by([]), Target(str(tmp_path), ("id", "kept"), "prediction", "snappy"))
    group = pq.ParquetFile(tmp_path / told["file"][0].as_py()).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    has = {path: "RLE_DICTIONARY" in column.encodings for path, column in columns.items()}
    assert not has["prediction.embedding.list.element"]
    assert has["kept"]
    assert has["prediction.engine"]
