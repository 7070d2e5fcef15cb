from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.tasks.chunks import pool_by_unit, sum_by_unit


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
