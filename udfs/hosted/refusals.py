"""What a hosted model, or its provider, cannot do of what a job may ask: told before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from udfs.hosted.endpoint import Endpoint
from udfs.spec import ScoreSpec
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.scores import ScoringOptions
from udfs.tasks.text_classification import TextClassificationOptions
from udfs.tasks.token_classification import TokenClassificationOptions
from udfs.tasks.translation import TranslationOptions
from udfs.tasks.writing_options import WritingOptions

_MOST_STOPS = 4  # of OpenAI
_LOCAL = ("revision", "base_model", "base_revision", "precision", "max_batch_tokens")
# Options of answers that a provider does not take.
_NOT_OF = {
    "openai-batch": ("top_k", "min_tokens", "chat_template_kwargs"),
    "anthropic-batch": (
        *("temperature", "top_p", "top_k", "seed", "n", "logprobs", "top_logprobs", "presence_penalty"),
        *("frequency_penalty", "logit_bias", "min_tokens", "chat_template_kwargs"),
    ),
    "openai-compatible": (),
}
_OF_LOCAL_LABELS = ("hypothesis_template", "multi_label", "chunk_pooling", "truncation", "activation")


def find_refusals(spec: ScoreSpec[Any]) -> Iterator[str]:
    """What is wrong with a spec whose model is hosted; each begins with the option's name."""
    endpoint: Endpoint = spec.endpoint
    for name in _changed(spec, _LOCAL):
        yield f"{name} is for models that gristmill runs itself, and {endpoint.engine} has its provider run them"
    if not spec.dedupe:
        yield "dedupe is false, and identical requests of a hosted model are sent once in any case"
    if spec.max_tokens is not None:
        yield (
            "max_tokens counts by the model's tokenizer, which a hosted model does not show: texts go as they are, and "
            "one that the provider finds too long fails as input_too_long; shorten it in the template"
        )
    if spec.overflow == "chunk":
        yield "overflow is chunk, which takes the model's tokenizer, and a hosted model does not show its own"
    match spec.options:
        case TokenClassificationOptions():
            yield "task token-classification is not asked of hosted models; take text-generation with a schema"
        case FeatureExtractionOptions() as options:
            yield from _find_refusals_of_vectors(options, endpoint)
        case ScoringOptions() as options:
            yield from _find_refusals_of_labels(options, endpoint)
        case WritingOptions() as options:
            yield from find_refusals_of_way(options, endpoint)
            if options.num_beams > 1:
                yield "num_beams is for encoder-decoders that gristmill runs itself"
            if isinstance(options, TranslationOptions) and not options.target_lang:
                yield "target_lang is missing: a hosted model translates into the language that it is told, as 'de'"


def find_refusals_of_way(way: WritingOptions, endpoint: Endpoint) -> Iterator[str]:
    """What of the way in which one answer is to be written the provider does not take."""
    engine = endpoint.engine
    for name in _changed(way, _NOT_OF[engine]):
        yield (
            f"{name} is nothing that {engine} takes of every model; leave it out, or write it into score.endpoint.body "
            "as the provider calls it"
        )
    if engine == "openai-batch" and len(way.stop) > _MOST_STOPS:
        yield f"stop has {len(way.stop)} strings, and {engine} takes {_MOST_STOPS}"
    if way.temperature > 2:
        yield f"temperature is {way.temperature}; providers take 0 to 2"


def _find_refusals_of_vectors(options: FeatureExtractionOptions, endpoint: Endpoint) -> Iterator[str]:
    if endpoint.engine == "anthropic-batch":
        yield "task feature-extraction is nothing that Anthropic has models for; take another engine"
    if options.prompt_name is not None:
        yield "prompt_name names a prompt of a model's own files; write it as prompt"
    if endpoint.in_batches and options.quantization == "int8" and options.ranges is None:
        yield "ranges are missing: int8 takes them, and they are not measured where a provider's batches are paid for"


def _find_refusals_of_labels(options: Any, endpoint: Endpoint) -> Iterator[str]:
    for name in _changed(options, _OF_LOCAL_LABELS):
        yield f"{name} is about scores, and a hosted model tells the label alone"
    if isinstance(options, TextClassificationOptions) and not options.labels:
        yield "labels are missing: a hosted model has none of its own, and chooses among those that it is told"


def _changed(owner: Any, names: tuple[str, ...]) -> list[str]:
    """Of some options, those that have not their default."""
    return [f.name for f in fields(owner) if f.name in names and getattr(owner, f.name) != f.default]
