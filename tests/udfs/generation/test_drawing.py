from __future__ import annotations

import pytest
import torch

from udfs.generation.drawing import find_best


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [5, 64, 130, 1000, 1024])
def test_the_likeliest_is_the_first_of_those_that_are_as_likely(precision: torch.dtype, words: int) -> None:
    logits = torch.randint(0, 9, (300, words), generator=torch.Generator().manual_seed(0)).to(precision)
    logits[0] = -torch.inf
    logits[1, words - 1] = torch.inf
    best, broken = find_best(logits)
    assert best.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert not broken.any()


@pytest.mark.parametrize("place", [0, 63, 64, 129])
def test_a_row_with_a_value_that_is_no_number_is_told(place: int) -> None:
    logits = torch.zeros(3, 130)
    logits[1, place] = torch.nan
    assert find_best(logits)[1].tolist() == [False, True, False]
