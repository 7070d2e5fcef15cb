from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.engine.cutting import fit_batch
from udfs.wire.items import padded_length

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
