"""Some of the items that went through, each as likely as any other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.engine.sample import Sample
from udfs.wire.items import Items


def _items(values: list[int]) -> Items:
    """An item of one token for each value."""
    return Items(np.array(values, np.int32), np.arange(len(values) + 1))


@given(parts=st.lists(st.integers(1, 40), max_size=8), size=st.integers(1, 20))
def test_a_sample_holds_different_items_that_were_there(parts: list[int], size: int) -> None:
    sample, seen = Sample(size), 0
    for count in parts:
        sample.add(_items(list(range(seen, seen + count))))
        seen += count
    drawn = [int(one.ids[0]) for one in sample.draw()]
    assert len(drawn) == len(set(drawn)) == min(size, seen)
    assert set(drawn) <= set(range(seen))


def test_each_item_is_as_likely_as_any_other() -> None:
    counts = np.zeros(60)
    for _ in range(2000):
        sample = Sample(6)
        for start in range(0, 60, 20):
            sample.add(_items(list(range(start, start + 20))))
        counts[[int(one.ids[0]) for one in sample.draw()]] += 1
    assert abs(counts - 200).max() < 6 * np.sqrt(180)  # six standard deviations


def test_a_sample_that_was_drawn_begins_anew() -> None:
    sample = Sample(3)
    sample.add(_items([1, 2]))
    assert len(sample.draw()) == 2
    sample.add(_items([5, 6, 7, 8]))
    assert {int(one.ids[0]) for one in sample.draw()} <= {5, 6, 7, 8}
