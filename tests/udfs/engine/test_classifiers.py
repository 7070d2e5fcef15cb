"""Classifiers that find their place by a token: each text has transformers' answer, as it has it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.models import VOCABULARY, WORDS, make_classifier
from udfs.engine.budget import measure_budget
from udfs.engine.model import Model
from udfs.errors import ModelError
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.items import Items

LABELS = ["bad", "fine", "good"]
# Some spell the padding token, or the one that ends a text, where a tokenizer never puts it.
TEXTS = [
    *("a good red kettle", "soil", " ".join(WORDS), "the tea [PAD] is not [SEP] very good", "a [SEP] b [SEP] c"),
    *("tea [PAD] [PAD]", "[PAD]", "[SEP]", "[PAD] [SEP]"),
]
DECODERS = ["Bloom", "GPT2", "GPTNeoX", "Gemma2", "Llama", "Mistral", "OPT", "Phi3", "Qwen2", "Qwen3"]
SLOW = {"Bloom", "GPTNeoX", "Mistral", "OPT", "Phi3", "MBart"}  # as the others


def _some(kinds: list[str]) -> list[Any]:
    return [pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW else []) for kind in kinds]


def _check(path: str) -> Model:
    """All texts together have the logits that transformers gives each alone."""
    spec = make_spec(task="text-classification", model=path, precision="float32")
    model = Model(spec)
    items = make_task(spec, open_model(path)).tokenize(TEXTS).items
    found, _ = model.run(items, np.arange(len(items)))
    wanted = _run_alone(path, items)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.ptp(wanted, axis=0).max() > 0.1  # texts differ at all
    return model


def _run_alone(path: str, items: Items) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    found = []
    for start, stop in zip(items.offsets[:-1], items.offsets[1:], strict=True):
        ids = torch.from_numpy(items.ids[start:stop][None].astype(np.int64))
        with torch.inference_mode():
            found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("pad_id", [None, 0, -1, VOCABULARY["[SEP]"], VOCABULARY["tea"]])
def test_a_decoder_reads_the_last_token_that_is_not_its_padding(tmp_path: Path, pad_id: int | None) -> None:
    _check(make_classifier(tmp_path, LABELS, kind="Llama", pad_token_id=pad_id))


@pytest.mark.parametrize("kind", _some(DECODERS))
def test_a_decoder_without_a_padding_token_answers_many_texts_as_each_alone(tmp_path: Path, kind: str) -> None:
    _check(make_classifier(tmp_path, LABELS, kind=kind, pad_token_id=None))


def test_a_reward_model_has_one_value_a_text(tmp_path: Path) -> None:
    _check(make_classifier(tmp_path, ["reward"], kind="Llama", pad_token_id=None))


@pytest.mark.parametrize("kind", _some(["Bart", "MBart", "T5"]))
def test_a_head_that_reads_the_last_end_token_meets_texts_that_spell_it(tmp_path: Path, kind: str) -> None:
    model = _check(make_classifier(tmp_path, LABELS, kind=kind))
    assert model.name.endswith("/padded")


def test_a_head_that_reads_the_end_token_is_measured_with_texts_that_have_one(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, LABELS, kind="Bart")
    with LocalEngine(make_spec(task="text-classification", model=path, precision="float32")) as engine:
        assert engine.budget.max_batch_tokens >= 1024
    spec = make_spec(
        task="zero-shot-classification",
        model=make_classifier(tmp_path / "nli", ["contradiction", "entailment"], kind="Bart"),
        labels=("red", "a good book"),
    )
    assert measure_budget(Model(spec), lanes=1, threads=1, fixed=None).max_batch_tokens >= 1024


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Bert", "MPNet"])
def test_an_encoder_reads_a_padding_token_that_a_text_spells_as_transformers_does(tmp_path: Path, kind: str) -> None:
    _check(make_classifier(tmp_path, LABELS, kind=kind))


def test_a_token_that_the_model_does_not_have_fails_before_the_device_sees_it(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, LABELS, vocab_size=(size := len(VOCABULARY) - 1))  # it lacks "##9"
    model = Model(make_spec(task="text-classification", model=path, precision="float32"))
    ids = np.array([2, size, 3], dtype=np.int32)
    with pytest.raises(ValueError, match=r"made token \d+, of which the model has \d+"):
        model.run(Items(ids, np.array([0, 3])), np.array([0]))


def test_a_model_that_runs_on_no_text_is_refused_as_it_loads(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, LABELS, kind="Bart", eos_token_id=VOCABULARY["9"])  # no text ends with it
    with pytest.raises(ModelError, match="reads no text: Each example must contain at least one <eos>"):
        Model(make_spec(task="text-classification", model=path, precision="float32"))
