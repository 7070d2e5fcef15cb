"""Requests of rows through a provider's batches, and the replies back to the rows, without Spark."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.hosted_batches import answer, ask_and_wait, hosted_spec, run_batch
from tests.provider import Faults, serve_provider
from udfs.errors import RowError
from udfs.hosted.asked import Reply
from udfs.hosted.asking import ask_about, ask_rows
from udfs.hosted.tasks import make_hosted

ENGINES = ("openai-batch", "anthropic-batch")
TEXTS = pa.array(["kettle", "", None, "spade", "kettle", "  "])
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def _codes(results: list[Any]) -> list[str | None]:
    return [result["error"] and result["error"]["code"] for result in results]


@pytest.mark.parametrize("engine", ENGINES)
def test_each_row_has_its_answer_and_identical_ones_are_asked_once(engine: str) -> None:
    with serve_provider() as provider:
        results = run_batch(provider, hosted_spec(provider, engine=engine), TEXTS)
        assert provider.asked == 2
    assert _codes(results) == [None, "empty_input", "empty_input", None, None, "empty_input"]
    assert results[0]["text"] == results[4]["text"] != results[3]["text"]
    assert results[0]["usage"]["output_tokens"] > 0
    assert results[4]["usage"]["output_tokens"] == 0
    assert f":{engine}/gpt-test/" in results[0]["engine"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("task", "options", "field"),
    [
        ("text-generation", {"json_schema": SCHEMA}, "answer"),
        ("text-generation", {"choices": ("x", "y")}, "text"),
        ("summarization", {}, "text"),
        ("translation", {"target_lang": "de"}, "text"),
        ("zero-shot-classification", {"labels": ("x", "y")}, "label"),
        ("text-classification", {"labels": ("x", "y")}, "label"),
    ],
)
def test_each_task_is_asked_and_read(engine: str, task: str, options: dict[str, Any], field: str) -> None:
    with serve_provider() as provider:
        results = run_batch(provider, hosted_spec(provider, task, engine=engine, **options), TEXTS)
    assert _codes(results) == [None, "empty_input", "empty_input", None, None, "empty_input"]
    told = results[0][field]
    if "json_schema" in options:
        assert isinstance(told["a"], int)
    elif field == "label" or "choices" in options:
        assert told in ("x", "y")
        assert results[0].get("scores") is None
    else:
        assert told


@pytest.mark.parametrize("engine", ENGINES)
def test_variants_and_languages_are_maps_and_a_row_fails_as_a_whole(engine: str) -> None:
    faults = Faults(words={"trouble": "errored"}, at_most_a_row=9)
    with serve_provider(faults=faults) as provider:
        spec = hosted_spec(
            provider,
            engine=engine,
            template="{{ a }}{% if v == 'fr' %} {{ b }}{% endif %} in {{ v }}",
            variants=("de", "fr"),
            variant_name="v",
        )
        rows = pa.array([{"a": "tea", "b": "fine"}, {"a": "tea", "b": "trouble"}, {"a": None, "b": None}])
        first, second, third = run_batch(provider, spec, rows)
        assert provider.asked == 3  # the German one is the same for both
        languages = run_batch(
            provider, hosted_spec(provider, "translation", engine=engine, target_lang=("de", "fr")), TEXTS
        )
    assert [*first["texts"]] == ["de", "fr"]
    assert second["texts"] is None
    assert _codes([first, second, third]) == [None, "provider_error", "empty_input"]
    assert [*languages[0]["texts"]] == ["de", "fr"]


def test_options_of_rows_go_to_the_provider_and_wrong_ones_fail_alone() -> None:
    rows = pa.array(
        [
            {"t": "tea", "o": told}
            for told in ("{}", '{"n": 3, "temperature": 1}', '{"top_k": 4, "temperature": 1}', '{"n": "many"}')
        ]
    )
    with serve_provider() as provider:
        spec = hosted_spec(provider, template="{{ t }}", options_from="o")
        results = run_batch(provider, spec, rows)
    assert _codes(results) == [None, None, "bad_options", "bad_options"]
    assert [len(result["candidates"] or ()) for result in results] == [1, 3, 0, 0]


def test_vectors_are_cut_and_packed_as_a_local_model_s_are() -> None:
    with serve_provider() as provider:
        (whole, *_) = run_batch(provider, hosted_spec(provider, "feature-extraction"), TEXTS)
        (cut, *_) = run_batch(provider, hosted_spec(provider, "feature-extraction", dimensions=4), TEXTS)
        (bits, *_) = run_batch(provider, hosted_spec(provider, "feature-extraction", quantization="ubinary"), TEXTS)
    norm = sum(value**2 for value in whole["embedding"][:4]) ** 0.5
    assert cut["embedding"] == pytest.approx([value / norm for value in whole["embedding"][:4]], abs=1e-6)
    assert bits["embedding"] == bytes(
        int("".join(str(int(value > 0)) for value in whole["embedding"][at : at + 8]), 2) for at in (0, 8)
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_a_batch_does_to_a_request_its_row_alone_has_it(engine: str) -> None:
    words = {
        name: name
        for name in ("errored", "bad_request", "context_overflow", "refusal", "content_filter", "missing", "malformed")
    }
    rows = pa.array(["tea", *(f"a word of {name}" for name in words), "coffee"])
    with serve_provider(faults=Faults(words=words, at_most_a_row=9, repeated=0.5, out_of_order=1.0)) as provider:
        results = run_batch(provider, hosted_spec(provider, engine=engine), rows)
    told = dict(zip(["tea", *words, "coffee"], _codes(results), strict=True))
    assert told == {
        "tea": None, "errored": "provider_error", "bad_request": "bad_request", "context_overflow": "input_too_long",
        "refusal": "refused", "content_filter": "refused" if engine == "anthropic-batch" else "content_filter",
        "missing": "no_reply", "malformed": "no_reply", "coffee": None,
    }  # fmt: skip


def test_lines_in_any_order_and_failures_beside_answers_change_nothing() -> None:
    rows = pa.array([f"row {number % 30}" for number in range(50)])
    with serve_provider() as provider:
        task = make_hosted(hosted_spec(provider))
        lines = ask_and_wait(provider, task, ask_rows(rows, task))
    wanted = answer(task, rows, lines)
    name = json.loads(lines[0])["custom_id"]
    failed = json.dumps({"custom_id": name, "response": None, "error": {"code": "batch_expired"}})
    strange = ["", "{", "[]", '{"custom_id": 3}', '{"custom_id": "gm-1-foreign"}', failed]
    for seed in range(3):
        mixed = [*lines, *strange, lines[3]]
        random.Random(seed).shuffle(mixed)
        assert answer(task, rows, mixed) == wanted


def test_what_was_answered_is_read_after_the_deadline_and_nothing_is_asked_any_more() -> None:
    rows = pa.array(["tea", "spade"])
    with serve_provider() as provider:
        task = make_hosted(hosted_spec(provider))
        lines = ask_and_wait(provider, task, ask_rows(rows, task))
    late = make_hosted(replace(task.spec, deadline=time.time() - 1))
    assert _codes(answer(late, rows, lines)) == [None, None]
    assert [row["error"]["code"] for row in ask_rows(rows, late).to_pylist()] == ["expired", "expired"]


def test_requests_have_ids_by_what_is_asked() -> None:
    one, other = (make_hosted(hosted_spec(max_new_tokens=tokens)) for tokens in (5, 6))
    (first, again, second), (longer, *_) = (
        [row["requests"][0] for row in ask_rows(pa.array(["a", "a", "b"]), task).to_pylist()] for task in (one, other)
    )
    assert first == again
    assert len({first["id"], second["id"], longer["id"]}) == 3
    assert len(first["id"]) == 32
    assert json.loads(first["line"])["messages"][0]["content"] == "a"
    assert "custom_id" not in first["line"]


def test_half_of_a_surrogate_pair_fails_its_row_alone() -> None:
    found = ask_about("\ud800", make_hosted(hosted_spec()))
    assert isinstance(found, RowError)
    assert found.code == "unreadable"


def test_a_vector_that_is_too_short_or_no_number_is_no_answer() -> None:
    task = make_hosted(hosted_spec(task="feature-extraction", dimensions=3))
    vectors = [np.array(told, dtype=np.float32) for told in ([1, 0], [1, 0, np.nan], [0, 3, 4, 0])]
    columns, failures = task.columns([()] * 4, [[Reply(vector=vector)] for vector in vectors] + [[]])
    assert {number: error.code for number, error in failures.items()} == {0: "invalid_output", 1: "invalid_output"}
    assert columns[0].to_pylist() == [None, None, [0.0, 3.0, 4.0], None]
