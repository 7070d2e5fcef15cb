from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MINILM
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.text import templates
from udfs.text.templates import read_texts
from udfs.worker.scoring import prepare, window_limits
from udfs.worker.windows import cut_parcels, cut_windows, find_duplicates

LENGTHS = st.lists(st.integers(1, 600), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int64))


@given(LENGTHS, st.integers(1, 5000))
def test_parcels_hold_each_item_once_longest_first(lengths: np.ndarray, tokens: int) -> None:
    parcels = cut_parcels(lengths, parcel_tokens=tokens)
    order = np.concatenate(parcels).tolist() if parcels else []
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    longest = int(lengths.max()) if len(lengths) else 0
    assert all(0 < lengths[parcel].sum() <= tokens + longest for parcel in parcels)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=3) | st.none(), max_size=30), max_size=8), st.integers(1, 20), st.integers(1, 99)
)
def test_windows_lose_and_reorder_nothing(batches: list[list[str | None]], rows: int, most_bytes: int) -> None:
    arrays = [pa.array(["skipped", *batch], pa.string()).slice(1) for batch in batches]
    for limit in (most_bytes, 1 << 30):
        windows = list(cut_windows(arrays, window_rows=rows, window_bytes=limit))
        assert [text for window in windows for text in window.to_pylist()] == [
            text for batch in batches for text in batch
        ]
        assert all(1 <= len(window) <= rows for window in windows)
    assert all(len(window) == rows for window in windows[:-1])


def test_a_slice_of_a_large_array_counts_its_own_bytes() -> None:
    large = pa.array(["x" * 1000] * 1000 + ["y"] * 10)
    slices = [large.slice(1000 + i, 1) for i in range(10)]
    assert [len(window) for window in cut_windows(slices, window_rows=10, window_bytes=100_000)] == [10]


@pytest.mark.parametrize("dedupe", [True, False])
@given(texts=st.lists(st.sampled_from(["a", "b", "é", "", None]), max_size=40))
def test_each_row_finds_its_own_text(dedupe: bool, texts: list[str | None]) -> None:
    distinct, text_of_row = find_duplicates(pa.array(texts, pa.string()), dedupe=dedupe)
    found = distinct.to_pylist()
    assert [None if i < 0 else found[i] for i in text_of_row] == texts
    assert len(found) == (len(set(texts) - {None}) if dedupe else len(texts) - texts.count(None))


@pytest.mark.parametrize(("units", "rows"), [(1, 8192), (8, 8192), (9, 7281), (50, 1310), (100_000, 1)])
def test_a_window_of_many_labels_has_fewer_rows(units: int, rows: int) -> None:
    limits = window_limits(make_spec("feature-extraction", "m"), units)
    assert limits["window_rows"] == rows
    assert limits["window_rows"] * units <= max(8 * 8192, units)
    assert limits["window_bytes"] * units <= 64 << 20


class Panic(BaseException):
    """What Rust's panics are in Python: no Exception."""


@pytest.mark.parametrize(("raises", "told"), [(OverflowError, "OverflowError"), (Panic, "PanicError")])
def test_a_row_that_no_tokenizer_takes_fails_alone(
    raises: type[BaseException], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(task="feature-extraction", model=MINILM)
    task = make_task(spec, open_model(MINILM))
    tokenize = task.tokenize

    def choke(texts: list[str]) -> Any:
        if "bad" in texts:
            raise raises
        return tokenize(texts)

    monkeypatch.setattr(task, "tokenize", choke)
    prepared = prepare(pa.array(["tea", "bad", None, "soil"]), spec, task)
    assert {row: error.code for row, error in prepared.failures.items()} == {1: "unreadable", 2: "empty_input"}
    assert told in prepared.failures[1].message
    assert prepared.text_of_row.tolist() == [0, -1, -1, 1]


def test_a_row_that_no_library_reads_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = templates.to_values

    def choke(column: pa.Array) -> list[Any]:
        if 3 in column.to_pylist():
            raise OSError
        return whole(column)

    monkeypatch.setattr(templates, "to_values", choke)
    read = read_texts(pa.array([1, 2, 3, None, 5]), None)
    assert read.texts.to_pylist() == ["1", "2", None, None, "5"]
    assert {row: error.code for row, error in read.failures.items()} == {2: "unreadable", 3: "empty_input"}
