"""What a batch has saved, by the lengths of its rows and by what a run has measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.telling.page import find
from jobs.telling.savings import pad_fixed, share_of_padding, tell_savings, tell_usd
from tests.outputs import LaidOut


def test_padding_of_fixed_batches_is_that_of_their_longest_rows() -> None:
    tokens = np.array([10] * 31 + [100] + [50] * 32 + [7] * 5)  # what does not fill a batch is left out
    assert pad_fixed(tokens) == pytest.approx(1 - (310 + 100 + 1600) / (3200 + 1600))
    assert share_of_padding(np.array([6, 8]), np.array([8, 8])) == pytest.approx(0.125)
    assert share_of_padding(np.array([], int), np.array([], int)) == 0.0


@pytest.mark.parametrize(
    ("task", "overflow", "is_told"),
    [
        ("feature-extraction", "truncate", True),
        ("feature-extraction", "chunk", False),  # a row is several items
        ("zero-shot-classification", "truncate", False),
    ],
)
def test_padding_is_told_where_a_row_is_one_item(task: str, overflow: str, is_told: bool, tmp_path: Path) -> None:
    made = LaidOut(tmp_path / "out", task=task, overflow=overflow)
    made.increment(0, [*range(1, 65), 0, 0])
    found = find(str(made.path))
    told = dict(tell_savings(found.totals, {}, found.lengths, found.job))
    assert told["deduplication: rows that were not scored again"] == "2 (3.0%)"
    assert any(name.startswith("packing") for name in told) == is_told


def test_money_has_as_many_digits_as_it_needs() -> None:
    assert [tell_usd(usd) for usd in (0.00123, 0.5, 1234.567)] == ["0.0012", "0.5000", "1,234.57"]
