from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import MINILM
from tests.models import PACKS, WORDS, make_classifier, make_encoder, write_json
from udfs.engine import model as model_module
from udfs.engine.model import Model
from udfs.errors import EngineError, ModelError
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.items import Items, padded_length

TEXTS = [" ".join((WORDS * 2)[start : start + words]) for start, words in ((0, 1), (3, 20), (5, 44), (2, 7), (9, 13))]


def _spec(model: str, **options: Any) -> ScoreSpec:
    return make_spec(**{"task": "feature-extraction", "model": model, "precision": "float32", **options})


def _items(texts: list[str], spec: ScoreSpec) -> Items:
    return make_task(spec, open_model(spec.model)).tokenize(texts).items


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("kind", [*PACKS, "DebertaV2", "MPNet", "T5Encoder", "LayoutLM"])
def test_an_item_padded_among_others_has_the_output_that_it_has_alone(tmp_path: Path, kind: str) -> None:
    spec = _spec(make_encoder(tmp_path, kind=kind))
    model, items = Model(spec, packed=False), _items(TEXTS, spec)
    together, widths = model.run(items, np.arange(len(items)))
    assert model.name.endswith("/padded")
    assert set(widths) == {items.lengths.max()} != {items.lengths.min()}
    alone = np.concatenate([model.run(items, np.array([i]))[0] for i in range(len(items))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["ConvBert", "FNet"])
def test_a_model_that_reads_padding_gets_items_of_one_length(tmp_path: Path, kind: str) -> None:
    spec = _spec(make_encoder(tmp_path, kind=kind))
    model, items = Model(spec), _items([*TEXTS, *TEXTS[::-1]], spec)
    order = np.array([1, 0, 5, 3, 2, 9, 4])
    together, widths = model.run(items, order)
    assert widths.tolist() == items.lengths[order].tolist()
    alone = np.concatenate([model.run(items, np.array([i]))[0] for i in order])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["ConvBert", "FNet"])
def test_that_a_model_reads_padding_is_found_as_it_loads(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_module, "_IGNORES_MASK", set())
    spec = _spec(make_encoder(tmp_path, kind=kind))
    model, items = Model(spec), _items(TEXTS, spec)
    assert "reads texts of one length together: beside others it answers otherwise" in capsys.readouterr().err
    together, widths = model.run(items, np.arange(len(items)))
    assert widths.tolist() == items.lengths.tolist()
    alone = np.concatenate([model.run(items, np.array([i]))[0] for i in range(len(items))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_model_that_mixes_texts_reads_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = model_module.load_forward

    def mix(*args: Any, **options: Any) -> Any:
        forward = load(*args, **options)
        return replace(forward, run=lambda batch: forward.run(batch) + len(batch.ids))

    monkeypatch.setattr(model_module, "load_forward", mix)
    spec = _spec(make_encoder(tmp_path, kind="MPNet"))
    model, items = Model(spec), _items(TEXTS, spec)
    assert "reads one text at a time" in capsys.readouterr().err
    together, _ = model.run(items, np.array([2, 0, 1]))
    alone = np.concatenate([model.run(items, np.array([i]))[0] for i in (2, 0, 1)])
    np.testing.assert_array_equal(together, alone)


def test_a_model_whose_fast_attention_does_not_run_has_plain_one(tmp_path: Path) -> None:
    """Gemma 2 bounds its products, which transformers' "sdpa" refuses when it is called, not when it is loaded."""
    path = make_classifier(tmp_path, ["a", "b"], kind="Gemma2", max_position_embeddings=1024)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", told | {"model_max_length": 1024})
    spec = _spec(path, task="text-classification")
    items = _items(TEXTS, spec)
    padded, _ = Model(spec, packed=False).run(items, np.arange(len(items)))
    np.testing.assert_allclose(padded, Model(spec).run(items, np.arange(len(items)))[0], atol=1e-5)


def test_a_model_that_mixes_padding_in_reads_items_of_one_length(tmp_path: Path) -> None:
    spec = _spec(make_encoder(tmp_path, kind="Nystromformer"))
    model, items = Model(spec), _items(TEXTS, spec)
    together, _ = model.run(items, np.arange(len(items)))
    alone = np.concatenate([model.run(items, np.array([i]))[0] for i in range(len(items))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["DebertaV2", "MPNet", "T5Encoder"])
def test_an_architecture_outside_the_registry_is_padded_and_says_so(tmp_path: Path, kind: str) -> None:
    assert Model(_spec(make_encoder(tmp_path, kind=kind))).name.endswith(":cpu/float32/padded")


def test_padding_is_counted_as_it_went_through_the_model(encoder: str) -> None:
    spec = _spec(encoder, max_batch_tokens=64)
    items = _items(TEXTS, spec)
    seen: list[tuple[int, int]] = []
    with LocalEngine(spec, model=Model(spec, packed=False)) as engine:
        _watch(engine.model, lambda batch: seen.append(tuple(batch.ids.shape)))
        padded = engine.forward(items).padded_tokens
    assert padded.sum() == sum(rows * width for rows, width in seen)
    assert all(rows == 1 or rows * width <= 64 for rows, width in seen)
    assert (padded >= items.lengths).all()
    assert all(width == padded_length(width, engine.model.pad_multiple) for _, width in seen)


def test_no_mask_is_made_where_nothing_is_padded(encoder: str) -> None:
    spec = _spec(encoder)
    model, items = Model(spec, packed=False), _items(["red tea", "good book", "tea"], spec)
    masks: list[bool] = []
    _watch(model, lambda batch: masks.append("attention_mask" in batch.inputs()))
    model.run(items, np.array([0, 1]))
    model.run(items, np.array([0, 2]))
    assert masks == [False, True]


def test_outputs_that_are_fewer_than_items_are_an_error(encoder: str) -> None:
    spec = _spec(encoder)
    with LocalEngine(spec) as engine:
        forward = engine.model._forward
        engine.model._forward = lambda batch: forward(batch)[:-1]
        with pytest.raises(EngineError, match=r"gave \d outputs for \d items"):
            engine.forward(_items(TEXTS, spec))


def test_no_items_need_no_model(encoder: str) -> None:
    spec = _spec(encoder)
    with LocalEngine(spec) as engine:
        outputs = engine.forward(_items([], spec))
    assert (len(outputs.values), len(outputs.padded_tokens)) == (0, 0)


def test_the_engine_is_named_by_its_device_and_precision(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Model(_spec(encoder, precision="bfloat16")).name.endswith(":cpu/bfloat16/packed")


def _watch(model: Any, look: Callable[[Any], Any]) -> None:
    forward = model._forward
    model._forward = lambda batch: (look(batch), forward(batch))[1]


def test_weights_of_another_width_than_the_config_are_told(tmp_path: Path) -> None:
    path = Path(make_classifier(tmp_path, ["a", "b", "c"]))
    config = (path / "config.json").read_text()
    assert '"hidden_size": 32' in config
    (path / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(ModelError, match="does not load"):
        Model(_spec(str(path), task="text-classification"))


def test_weights_that_were_copied_in_part_are_told(tmp_path: Path) -> None:
    weights = Path(make_encoder(tmp_path)) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="fetch it again"):
        Model(_spec(str(tmp_path)))


@pytest.mark.parametrize("kind", ["Bert", pytest.param("DebertaV2", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "asked", [{"return_dict": False}, {"output_attentions": True, "output_hidden_states": True}, {"torchscript": True}]
)
def test_what_a_config_wants_returned_changes_nothing(tmp_path: Path, kind: str, asked: dict[str, Any]) -> None:
    for task, path in (
        ("feature-extraction", make_encoder(tmp_path / "encoder", kind=kind)),
        ("text-classification", make_classifier(tmp_path / "classifier", ["a", "b", "c"], kind=kind)),
    ):
        spec = _spec(path, task=task)
        items = _items(TEXTS, spec)
        wanted, _ = Model(spec).run(items, np.arange(len(items)))
        config = json.loads((Path(path) / "config.json").read_text())
        write_json(Path(path) / "config.json", config | asked)
        np.testing.assert_array_equal(Model(spec).run(items, np.arange(len(items)))[0], wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.998)])
def test_a_gpu_gives_the_answers_of_a_cpu(precision: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.bench.corpus import docstrings

    spec = _spec(MINILM, precision=precision)
    items = _items(docstrings(200), spec)
    with LocalEngine(spec) as engine:
        on_gpu = engine.forward(items)
    assert "cuda" in engine.model.name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with LocalEngine(_spec(MINILM)) as engine:
        on_cpu = engine.forward(items)
    assert (on_gpu.values * on_cpu.values).sum(axis=1).min() >= least
