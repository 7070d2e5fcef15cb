from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batching import (
    Items,
    cut_parcels,
    cut_windows,
    find_duplicates,
    fit_batch,
    join_items,
    pad,
    padded_length,
    pool_by_unit,
    sum_by_unit,
)

LENGTHS = st.lists(st.integers(1, 600), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int64))


def _micro_batches(lengths: np.ndarray, **limits: int) -> list[np.ndarray]:
    batches, rest = [], np.argsort(-lengths, kind="stable")
    while len(rest):
        count = fit_batch(lengths[rest], **limits)
        assert count > 0
        batches.append(rest[:count])
        rest = rest[count:]
    return batches


@given(LENGTHS, st.integers(1, 4000), st.integers(0, 4000), st.sampled_from([1, 8]))
def test_micro_batches_keep_to_the_budget_and_pad_little(
    lengths: np.ndarray, budget: int, least: int, multiple: int
) -> None:
    batches = _micro_batches(lengths, max_batch_tokens=budget, min_batch_tokens=least, pad_multiple=multiple)
    for batch in batches:
        size = len(batch) * padded_length(int(lengths[batch].max()), multiple)
        assert len(batch) == 1 or size <= budget
        assert (
            size <= max(least, padded_length(int(lengths[batch].max()), multiple))
            or lengths[batch].sum() >= 0.93 * size
        )


def test_items_of_one_length_fill_the_budget() -> None:
    batches = _micro_batches(np.full(100, 10), max_batch_tokens=200, min_batch_tokens=50, pad_multiple=1)
    assert [len(batch) for batch in batches] == [20] * 5


@given(LENGTHS, st.integers(1, 5000))
def test_parcels_hold_each_item_once_longest_first(lengths: np.ndarray, tokens: int) -> None:
    parcels = cut_parcels(lengths, parcel_tokens=tokens)
    order = np.concatenate(parcels).tolist() if parcels else []
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    longest = int(lengths.max()) if len(lengths) else 0
    assert all(0 < lengths[parcel].sum() <= tokens + longest for parcel in parcels)


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=4), st.randoms())
def test_items_are_joined_and_taken_with_their_own_tokens(parts: list[tuple[np.ndarray, bool]], random: object) -> None:
    made = [_items(lengths, typed=typed) for lengths, typed in parts]
    joined = join_items(made)
    expected = [tokens for part in made for tokens in _tokens(part)]
    assert _tokens(joined) == expected
    wanted = [i for i in range(len(expected)) if random.random() < 0.5]  # type: ignore[attr-defined]
    assert _tokens(joined.take(np.array(wanted, dtype=np.int64))) == [expected[i] for i in wanted]


def _items(lengths: np.ndarray, *, typed: bool) -> Items:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(offsets[-1], dtype=np.int32)
    return Items(ids, offsets, ids % 2 if typed else None)


def _tokens(items: Items) -> list[list[tuple[int, int]]]:
    types = np.zeros_like(items.ids) if items.type_ids is None else items.type_ids
    return [
        list(zip(items.ids[a:b].tolist(), types[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(items.offsets.tolist())
    ]


@given(LENGTHS.filter(len), st.sampled_from([1, 8]), st.randoms())
def test_padding_keeps_each_token_in_its_place(lengths: np.ndarray, multiple: int, random: object) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    batch = np.array(random.sample(range(len(lengths)), k=random.randint(1, len(lengths))))  # type: ignore[attr-defined]
    values, real = pad(flat, offsets, batch, pad_multiple=multiple, fill=-5)
    assert values.shape[1] % multiple == 0
    for row, item in enumerate(batch):
        expected = flat[offsets[item] : offsets[item + 1]]
        assert values[row, : len(expected)].tolist() == expected.tolist()
        assert (values[row, len(expected) :] == -5).all()
        assert real[row].tolist() == [True] * len(expected) + [False] * (values.shape[1] - len(expected))


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


@given(st.lists(st.integers(0, 4), max_size=30))
def test_units_are_pooled_by_their_tokens_or_their_largest(counts: list[int]) -> None:
    units = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(units[-1], 3)).astype(np.float32)
    weights = rng.integers(1, 9, size=units[-1])
    means, sums = pool_by_unit(outputs, weights, units), sum_by_unit(weights, units)
    largest = pool_by_unit(outputs, weights, units, how="max")
    for unit, (start, stop) in enumerate(itertools.pairwise(units)):
        assert sums[unit] == weights[start:stop].sum()
        if start == stop:
            assert not means[unit].any()
            assert not largest[unit].any()
        else:
            expected = np.average(outputs[start:stop], axis=0, weights=weights[start:stop])
            np.testing.assert_allclose(means[unit], expected, rtol=1e-4, atol=1e-5)
            assert (largest[unit] == outputs[start:stop].max(axis=0)).all()
