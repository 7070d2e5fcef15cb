"""Options are told in one place, and specs are made of them by name."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.errors import SpecError
from udfs.spec import ScoreSpec
from udfs.tasks.registry import KINDS, SHARED, make_spec, option_defaults, read_spec, task_options

NEEDED: dict[str, dict[str, Any]] = {"zero-shot-classification": {"labels": ["a", "b"]}}


@pytest.mark.parametrize("task", KINDS)
def test_options_of_other_tasks_may_be_named_with_their_defaults(task: str) -> None:
    named = {name: value for name, value in option_defaults().items() if name not in NEEDED.get(task, {})}
    assert make_spec(task, "m", **named, **NEEDED.get(task, {})) == make_spec(task, "m", **NEEDED.get(task, {}))


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        (
            "translation",
            {"labels": ["a"]},
            "chunk_pooling and labels belong to text-classification and zero-shot-classif",
        ),
        ("summarization", {"target_lang": "de"}, "source_lang and target_lang belong to translation, not to summariz"),
        ("summarization", {"aggregation_strategy": "first"}, "aggregation_strategy belongs to token-classification"),
        ("feature-extraction", {"seed": 3, "stop": ["x"]}, "seed, stop belong to text-generation, summarization, tran"),
        ("summarization", {"choices": ["a"]}, "choices belong to text-generation, not to summarization"),
        (
            "translation",
            {"chunk_pooling": "max"},
            "chunk_pooling and labels belong to text-classification and zero-shot-classif",
        ),
        ("translation", {"target_lang": False}, "give a language, or a list of them"),
        ("feature-extraction", {"max_token": 3}, "there is no option max_token"),
        ("question-answering", {}, "task is 'question-answering'; choose one of feature-extraction, text-"),
    ],
)
def test_what_a_task_does_not_take_is_told(task: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make_spec(task, "m", **options)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SpecError) as error:
        make_spec("translation", "m", labels=["a"], max_tokens=1, top_p=2.0, overflow="cut")
    for told in ("labels", "max_tokens is 1", "top_p is 2.0", "overflow is 'cut'"):
        assert told in error.value.message


def test_every_option_says_what_it_means() -> None:
    own = {name: option for name, (option, _) in task_options().items()}
    for name, option in {**SHARED, **own}.items():
        assert option.metadata["doc"].endswith("."), name


@given(
    st.sampled_from(["text-generation", "translation", "summarization"]),
    st.fixed_dictionaries(
        {"max_new_tokens": st.integers(1, 99), "seed": st.integers(0, 9), "stop": st.lists(st.text("ab", min_size=1))},
        optional={"temperature": st.floats(0.1, 2), "max_tokens": st.integers(4, 99), "dedupe": st.booleans()},
    ),
)
def test_an_engine_is_told_all_that_is_its_business(task: str, options: dict[str, Any]) -> None:
    spec: ScoreSpec[Any] = make_spec(task, "m", **options)
    read = read_spec(json.loads(json.dumps(spec.for_engine())))
    assert read.for_engine() == spec.for_engine()
    for owner, other in ((spec, read), (spec.options, read.options)):
        for option in (option for option in fields(owner) if option.metadata.get("for_engine")):
            assert getattr(owner, option.name) == getattr(other, option.name)
