from __future__ import annotations

import pytest

from udfs.engine.budget import Budget, choose_size, measure_budget
from udfs.engine.model import Model
from udfs.spec import ScoreSpec


def test_memory_that_runs_out_halves_the_budget_at_once_and_it_grows_back_slowly() -> None:
    budget = Budget(4096, 384)
    budget.shrink(4000)
    assert budget.now == 2000
    budget.shrink(4000)  # another lane's, cut before the first shrink
    assert budget.now == 2000
    steps = 0
    while budget.now < 4096:
        before = budget.now
        for _ in range(10):
            budget.note_success(10)  # batches that are not full tell nothing
        assert budget.now == before
        budget.note_success(before)
        assert budget.now <= before * 1.25 + 1
        steps += 1
    assert steps > 100
    budget.note_success(4096)
    assert budget.now == 4096


def test_a_budget_never_falls_below_one_token() -> None:
    budget = Budget(8, 4)
    for _ in range(10):
        budget.shrink(1)
    assert budget.now == 1


def test_a_smaller_start_is_taken_a_larger_one_is_not() -> None:
    budget = Budget(1000, 10)
    budget.start_at(5000)
    assert budget.now == 1000
    budget.start_at(300)
    assert budget.now == 300


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1024: 100, 2048: 150, 4096: 151}, 2048),
        ({1024: 100, 2048: 101, 4096: 500}, 1024),
        ({1024: 100, 2048: 150, 4096: 200}, 4096),
    ],
)
def test_the_smallest_budget_is_taken_that_is_about_as_fast_as_the_next(rates: dict[int, int], best: int) -> None:
    assert choose_size(rates, lambda size: 0.01 * size / rates[size] / 1024) == best


def test_a_large_model_is_tried_once() -> None:
    tried: list[int] = []

    def seconds(size: int) -> float:
        tried.append(size)
        return 5.0

    assert choose_size([1024, 2048], seconds) == 1024
    assert tried == [1024]


def test_a_budget_that_was_asked_for_is_kept_and_the_model_is_warm(spec: ScoreSpec) -> None:
    model = Model(spec)
    assert measure_budget(model, lanes=1, threads=1, fixed=77).max_batch_tokens == 77
    assert model.width == 32
    assert measure_budget(model, lanes=2, threads=1, fixed=None).max_batch_tokens >= 1024
