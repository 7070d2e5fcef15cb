"""Models whose position frequencies go by the longest text of a call."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.models import PACKS, make_classifier, make_encoder, make_tagger, rope_of, write_json
from udfs.engine.model import Model
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.model.limits import position_limit
from udfs.model.positions import settle_positions
from udfs.tasks.registry import make_spec
from udfs.wire.items import Items

_PACKED = [kind for kind in ("Gte", "JinaEmbeddingsV3", "ModernBert", "NomicBert") if kind in PACKS]
_PADDED = ["Llama", "Phi3", "Phimoe", "Qwen2", "EuroBert"]  # decoders that embed, and an encoder that is not packed
_LENGTHS = [5, 40, 16, 17, 9, 60, 1, 66]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _items(lengths: list[int] = _LENGTHS) -> Items:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Items(rng.integers(4, 60, offsets[-1]).astype(np.int32), offsets)


def _alone(path: str, items: Items, auto: str = "AutoModel") -> np.ndarray:
    """What transformers gives for one text at a time, by a model that has seen no other."""
    found, fresh = [], getattr(transformers, auto).from_pretrained(path).eval()
    for start, stop in zip(items.offsets[:-1], items.offsets[1:], strict=True):
        model = copy.deepcopy(fresh)
        with torch.inference_mode():
            output = model(input_ids=torch.from_numpy(items.ids[None, start:stop].astype(np.int64)))
        found.append(output.last_hidden_state[0].mean(0) if auto == "AutoModel" else output.logits[0])
    return torch.stack(found).numpy() if found[0].dim() == 1 else torch.cat(found).numpy()


def _load(path: str, *, task: str = "feature-extraction", **options: Any) -> Model:
    return Model(make_spec(task=task, model=path, precision="float32", max_tokens=66), **options)


def _cases() -> list[Any]:
    kinds = [(kind, packed) for kind in _PACKED for packed in (True, False)] + [(kind, False) for kind in _PADDED]
    few = {("ModernBert", True), ("ModernBert", False), ("Llama", False)}
    return [pytest.param(*case, marks=[] if case in few else pytest.mark.long) for case in kinds]


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
@pytest.mark.parametrize(("kind", "packed"), _cases())
def test_a_short_text_has_the_vector_that_it_has_alone_beside_a_long_one(
    tmp_path: Path, kind: str, packed: bool, rope: str
) -> None:
    if kind in ("Phi3", "Phimoe") and rope == "dynamic":
        pytest.skip("it knows longrope alone")
    more = {"original_max_position_embeddings": 16} if kind == "Phi3" else {}
    path = make_encoder(tmp_path, kind=kind, normalize=False, rope_parameters=rope_of(kind, rope), **more)
    model, items = _load(path, packed=packed), _items()
    assert model.name.endswith("/packed" if packed else "/padded")
    if not packed:  # as on a GPU, where padding goes beyond the longest text that the model reads
        model._make_batch = dataclasses.replace(model._make_batch, pad_multiple=8)
    alone = _alone(path, items)
    for order in (np.arange(len(items)), np.argsort(items.lengths)):
        np.testing.assert_allclose(model.run(items, order)[0], alone[order], atol=2e-4)
    one = np.concatenate([model.run(items, np.array([i]))[0] for i in range(len(items))])
    np.testing.assert_allclose(one, alone, atol=2e-4)


@pytest.mark.parametrize("kind", ["Llama", *(pytest.param(kind, marks=pytest.mark.long) for kind in _PACKED)])
def test_classes_of_texts_and_of_tokens_are_those_of_one_text_at_a_time(tmp_path: Path, kind: str) -> None:
    items, rope = _items(), rope_of(kind, "longrope")
    for task, make, auto in (
        ("text-classification", make_classifier, "AutoModelForSequenceClassification"),
        ("token-classification", make_tagger, "AutoModelForTokenClassification"),
    ):
        if not hasattr(transformers, f"{kind}{auto.removeprefix('AutoModel')}"):
            continue
        path = make(tmp_path / task, ["a", "b", "c"], kind=kind, rope_parameters=rope)
        model = _load(path, task=task)
        np.testing.assert_allclose(model.run(items, np.arange(len(items)))[0], _alone(path, items, auto), atol=2e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_lanes_share_no_frequencies(tmp_path: Path, packed: bool) -> None:
    kind = "ModernBert" if packed else "Llama"
    model = _load(make_encoder(tmp_path, kind=kind, normalize=False, rope_parameters=rope_of(kind, "longrope")))
    items, before = _items([5, 40]), sys.getswitchinterval()
    alone = [model.run(items, np.array([i]))[0] for i in (0, 1)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: model.run(items, np.array([i % 2]))[0], range(200)))
    finally:
        sys.setswitchinterval(before)
    for number, values in enumerate(found):
        np.testing.assert_allclose(values, alone[number % 2], atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_dynamic_positions_need_a_length_from_which_they_are_reckoned(tmp_path: Path, nested: bool) -> None:
    path = Path(make_encoder(tmp_path, kind="Llama"))
    config = json.loads((path / "config.json").read_text())
    del config["max_position_embeddings"]
    config["rope_parameters"] = {"full_attention": rope_of("Llama", "dynamic")} if nested else rope_of("", "dynamic")
    write_json(path / "config.json", config)
    with pytest.raises(ModelError, match="lacks max_position_embeddings"):
        position_limit(open_model(str(path)))


def test_an_encoder_decoder_with_two_sets_of_frequencies_is_refused() -> None:
    side = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    side |= {"intermediate_size": 64, "vocab_size": 64, "head_dim": 8, "max_position_embeddings": 66}
    side |= {"rope_parameters": rope_of("", "longrope")}
    config = transformers.T5GemmaConfig(encoder=dict(side), decoder=dict(side), vocab_size=64)
    with pytest.raises(ModelError, match="t5gemma with longrope positions"):
        settle_positions(transformers.T5GemmaForConditionalGeneration(config))
