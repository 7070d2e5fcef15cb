"""What hosted models cannot do is refused before anything starts, by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosted_batches import hosted_spec
from udfs.errors import SpecError
from udfs.hosted.tasks import make_hosted, tell_form


@pytest.mark.parametrize(
    ("task", "engine", "options", "told"),
    [
        ("text-generation", "openai-batch", {"revision": "abc"}, "revision is for models"),
        ("text-generation", "openai-batch", {"precision": "float16"}, "precision is for models"),
        ("text-generation", "openai-batch", {"max_batch_tokens": 8}, "max_batch_tokens is for models"),
        ("text-generation", "openai-compatible", {"max_tokens": 100}, "max_tokens counts by the model's tokenizer"),
        ("summarization", "openai-batch", {"overflow": "chunk"}, "overflow is chunk"),
        ("text-generation", "openai-batch", {"dedupe": False}, "dedupe is false"),
        ("text-generation", "openai-batch", {"temperature": 1.0, "top_k": 3}, "top_k is nothing"),
        ("text-generation", "openai-batch", {"stop": ("a", "b", "c", "d", "e")}, "stop has 5 strings"),
        ("text-generation", "openai-compatible", {"temperature": 3.0}, "temperature is 3.0"),
        ("text-generation", "anthropic-batch", {"temperature": 0.5}, "temperature is nothing"),
        ("text-generation", "anthropic-batch", {"n": 2}, "n is nothing"),
        ("text-generation", "anthropic-batch", {"logprobs": True}, "logprobs is nothing"),
        ("summarization", "openai-batch", {"num_beams": 4}, "num_beams is for encoder-decoders"),
        ("translation", "openai-batch", {}, "target_lang is missing"),
        ("token-classification", "openai-batch", {}, "task token-classification"),
        ("feature-extraction", "anthropic-batch", {}, "Anthropic"),
        ("feature-extraction", "openai-batch", {"prompt_name": "query"}, "prompt_name names"),
        ("feature-extraction", "openai-batch", {"quantization": "int8"}, "ranges are missing"),
        ("text-classification", "openai-batch", {}, "labels are missing"),
        ("zero-shot-classification", "openai-batch", {"labels": ("a",), "multi_label": True}, "multi_label is about"),
        ("zero-shot-classification", "openai-batch", {"labels": ("a",), "hypothesis_template": "{}?"}, "hypothesis_"),
    ],
)
def test_what_a_hosted_model_cannot_do_is_refused(task: str, engine: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make_hosted(hosted_spec(task=task, engine=engine, **options))


def test_labels_of_one_s_own_are_for_hosted_models_and_zero_shot() -> None:
    from udfs.tasks.registry import make_spec

    with pytest.raises(SpecError, match="take zero-shot-classification"):
        make_spec("text-classification", "m", labels=("a", "b"))


@pytest.mark.parametrize("options", [{"top_k": 3, "temperature": 1.0}, {"min_tokens": 3}, {"stop": tuple("abcde")}])
def test_a_server_such_as_vllm_s_takes_more(options: dict[str, Any]) -> None:
    assert make_hosted(hosted_spec(engine="openai-compatible", **options)).fields


@pytest.mark.parametrize(
    ("engine", "schema", "told"),
    [
        ("openai-batch", '{"type":"object","properties":{"a":{"type":"string"}}}', "beyond what openai-batch holds"),
        ("openai-batch", '{"type":"array","items":{"type":"string"}}', "beyond what openai-batch holds"),
        ("anthropic-batch", '{"type":"object","additionalProperties":true}', "in the prompt"),
        (
            "openai-batch",
            '{"type":"object","required":["a"],"properties":{"a":{"type":"string","maxLength":3}}}',
            "maxLength at properties.a",
        ),
    ],
)
def test_what_of_a_schema_binds_loosely_is_told(engine: str, schema: str, told: str) -> None:
    lines = tell_form(make_hosted(hosted_spec(engine=engine, json_schema=schema)))
    assert any(told in line for line in lines)


def test_a_schema_that_binds_is_not_told() -> None:
    schema = '{"type":"object","required":["a"],"properties":{"a":{"type":"string"}}}'
    for engine in ("openai-batch", "anthropic-batch", "openai-compatible"):
        assert tell_form(make_hosted(hosted_spec(engine=engine, json_schema=schema))) == []
