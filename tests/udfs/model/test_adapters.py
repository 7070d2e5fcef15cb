"""LoRA adapters: merged they answer as peft does without; what they must not ask for is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.adapters import save_adapter
from tests.engine_rows import undisturbed_rows
from tests.models import make_classifier, make_encoder, make_tagger, write_json
from tests.random_writers import save_writer
from udfs.errors import ModelError, UnsafeModelError
from udfs.model.files import open_model, open_model_of, pin
from udfs.model.loading import load_transformer
from udfs.tasks.registry import make_spec, make_task

TEXTS = ["red kettle", "the dog is not very good", "tea"]
_QUERIES = {"target_modules": ["query", "value"]}
_HEAD = {"task_type": "SEQ_CLS", **_QUERIES}


def _base(path: Path, **options: Any) -> str:
    return make_encoder(path / "base", **options)


def _encode(base: str, text: str) -> Any:
    return AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")


def _means(model: Any, base: str) -> np.ndarray:
    """(N, H) normalised means, as the base's modules ask for."""
    with torch.inference_mode():
        found = [model(**_encode(base, text)).last_hidden_state[0].mean(0) for text in TEXTS]
    return torch.nn.functional.normalize(torch.stack(found), dim=1).numpy()


def _check_vectors(adapter: Path, wanted: np.ndarray, **options: Any) -> None:
    spec = make_spec(task="feature-extraction", model=str(adapter), precision="float32", **options)
    found = [row["embedding"] for row in undisturbed_rows(TEXTS, spec)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "lora",
    [
        _QUERIES,
        {**_QUERIES, "use_rslora": True},
        {**_QUERIES, "use_dora": True},
        {**_QUERIES, "init_lora_weights": "pissa"},
        {**_QUERIES, "bias": "all"},
        {"target_modules": "all-linear", "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 32}},
        {"target_modules": r".*layer\.1\..*(key|dense)"},
        {"target_modules": ["word_embeddings", "query"]},
        {**_QUERIES, "layers_to_transform": [1]},
        {**_QUERIES, "modules_to_save": ["word_embeddings"]},
        {**_QUERIES, "task_type": "FEATURE_EXTRACTION"},
    ],
    ids=lambda lora: " ".join(f"{k}={v}" for k, v in lora.items() if v is not _QUERIES["target_modules"]),
)
def test_an_adapter_gives_the_vectors_that_it_gives_in_peft(tmp_path: Path, lora: dict[str, Any]) -> None:
    base = _base(tmp_path)
    plain = _means(AutoModel.from_pretrained(base).eval(), base)
    wanted = _means(save_adapter(AutoModel.from_pretrained(base), tmp_path / "adapter", base=base, **lora), base)
    assert np.abs(plain - wanted).max() > 0.01
    _check_vectors(tmp_path / "adapter", wanted)


@pytest.mark.parametrize("named", ["../base", "base", "absolute"])
def test_a_base_is_found_from_here_and_from_the_adapter(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _base(tmp_path)
    saved_as = base if named == "absolute" else named
    model = save_adapter(
        AutoModel.from_pretrained(base), tmp_path / "adapter", base=base, saved_as=saved_as, **_QUERIES
    )
    monkeypatch.chdir(tmp_path if named == "base" else Path.home())
    _check_vectors(tmp_path / "adapter", _means(model, base))


def test_another_base_can_be_said(tmp_path: Path) -> None:
    base = _base(tmp_path)
    model = save_adapter(
        AutoModel.from_pretrained(base), tmp_path / "adapter", base=base, saved_as="org/gone", **_QUERIES
    )
    _check_vectors(tmp_path / "adapter", _means(model, base), base_model=base)
    with pytest.raises(ModelError, match="'org/gone' is not a directory here"):
        open_model(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="base_model is for LoRA adapters"):
        open_model(base, base_model=base)


def test_a_classifiers_head_and_its_labels_come_with_the_adapter(tmp_path: Path) -> None:
    base = _base(tmp_path)
    trained = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = save_adapter(trained, tmp_path / "adapter", base=base, **_HEAD)
    spec = make_spec(task="text-classification", model=str(tmp_path / "adapter"), precision="float32")
    rows = undisturbed_rows(TEXTS, spec)
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.inference_mode():
            wanted = model(**_encode(base, text)).logits.softmax(-1)[0].numpy()
        assert [name for name, _ in row["scores"]] == ["LABEL_0", "LABEL_1", "LABEL_2"]
        np.testing.assert_allclose([score for _, score in row["scores"]], wanted, atol=1e-5)
    trained.config.id2label = {0: "bad", 1: "fine", 2: "good"}
    trained.config.save_pretrained(tmp_path / "adapter")
    open_model.cache_clear()
    assert [name for name, _ in undisturbed_rows(TEXTS, spec)[0]["scores"]] == ["bad", "fine", "good"]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_a_head_of_another_size_takes_the_place_of_the_bases(tmp_path: Path, kind: str) -> None:
    base = make_classifier(tmp_path / "base", ["x", "y"], kind=kind)
    trained = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4, ignore_mismatched_sizes=True)
    targets = ["q_lin", "v_lin"] if kind == "DistilBert" else ["query"]
    model = save_adapter(trained, tmp_path / "adapter", base=base, task_type="SEQ_CLS", target_modules=targets)
    spec = make_spec(task="text-classification", model=str(tmp_path / "adapter"), precision="float32")
    for text, row in zip(TEXTS, undisturbed_rows(TEXTS, spec), strict=True):
        with torch.inference_mode():
            wanted = model(**_encode(base, text)).logits.softmax(-1)[0].numpy()
        np.testing.assert_allclose([score for _, score in row["scores"]], wanted, atol=1e-5)


def test_a_taggers_adapter_finds_what_it_finds_in_peft(tmp_path: Path) -> None:
    base = make_tagger(tmp_path / "base", ["O", "B-X", "B-Y"])
    model = save_adapter(
        AutoModelForTokenClassification.from_pretrained(base),
        tmp_path / "adapter",
        base=base,
        task_type="TOKEN_CLS",
        **_QUERIES,
    )
    asked = {"aggregation_strategy": "none", "precision": "float32"}
    spec = make_spec(task="token-classification", model=str(tmp_path / "adapter"), **asked)
    for text, row in zip(TEXTS, undisturbed_rows(TEXTS, spec), strict=True):
        with torch.inference_mode():
            wanted = model(**_encode(base, text)).logits[0].softmax(-1)[1:-1].max(-1)
        names = [name for name, kind in zip(wanted.values.tolist(), wanted.indices.tolist(), strict=True) if kind]
        np.testing.assert_allclose([entity["score"] for entity in row["entities"]], names, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoders_adapter_writes_what_it_writes_in_peft(tmp_path: Path, tied: bool) -> None:
    base = save_writer(tmp_path / "base", tie_word_embeddings=tied)
    trained = AutoModelForCausalLM.from_pretrained(base)
    model = save_adapter(
        trained, tmp_path / "adapter", base=base, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj", "lm_head"]
    )
    spec = make_spec(task="text-generation", model=str(tmp_path / "adapter"), max_new_tokens=8, precision="float32")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = undisturbed_rows(["abc", "hello there"], spec)
    for text, row in zip(["abc", "hello there"], rows, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        found = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert row["text"] == tokenizer.decode(found, skip_special_tokens=True)


def test_an_encoder_decoders_adapter_writes_what_it_writes_in_peft(tmp_path: Path) -> None:
    base = save_writer(tmp_path / "base", "T5")
    trained = AutoModelForSeq2SeqLM.from_pretrained(base)
    model = save_adapter(
        trained, tmp_path / "adapter", base=base, task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wo"]
    )
    spec = make_spec(task="text-generation", model=str(tmp_path / "adapter"), max_new_tokens=8, precision="float32")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{base}/tokenizer.json")
    ids = tokenizer("abc", return_tensors="pt")["input_ids"]
    wanted = tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=8)[0, 1:], skip_special_tokens=True)
    assert undisturbed_rows(["abc"], spec)[0]["text"] == wanted


def test_an_adapter_of_a_whole_writer_embeds_by_its_body(tmp_path: Path) -> None:
    base = save_writer(tmp_path / "base")
    trained = AutoModelForCausalLM.from_pretrained(base)
    model = save_adapter(
        trained, tmp_path / "adapter", base=base, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"]
    )
    found = load_transformer("AutoModel", open_model(str(tmp_path / "adapter")), device="cpu", precision="float32")
    ids = torch.arange(3, 9)[None]
    with torch.inference_mode():
        wanted = model.base_model.model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found(input_ids=ids).last_hidden_state, wanted, atol=1e-4, rtol=1e-4)
        assert not [name for name, _ in found.named_modules() if "lora" in name]


def test_a_vocabulary_that_has_grown_is_the_adapters(tmp_path: Path) -> None:
    base = _base(tmp_path)
    trained = AutoModel.from_pretrained(base)
    trained.resize_token_embeddings(trained.config.vocab_size + 5)
    model = save_adapter(
        trained, tmp_path / "adapter", base=base, modules_to_save=["word_embeddings"], target_modules=["query"]
    )
    _check_vectors(tmp_path / "adapter", _means(model, base))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = _base(tmp_path)
    save_adapter(AutoModel.from_pretrained(base), tmp_path / "adapter", base=base, **_QUERIES)
    return tmp_path / "adapter"


def _change(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    write_json(file, {**json.loads(file.read_text()), **values})


@pytest.mark.parametrize(
    ("told", "kind", "why"),
    [
        ({"peft_type": "PROMPT_TUNING"}, ModelError, "of kind PROMPT_TUNING"),
        ({"peft_type": "IA3"}, ModelError, "of kind IA3"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}, UnsafeModelError, "'evil'"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "transformersevil"}}, UnsafeModelError, "code"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": ["evil"]}}, UnsafeModelError, "code"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, ModelError, "asks for megatron_config"),
        ({"layer_replication": [[0, 1], [0, 1]]}, ModelError, "asks for layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, ModelError, "asks for alora_invocation_tokens"),
        ({"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"}, ModelError, "init_lora_weights 'loftq'"),
        ({"init_lora_weights": "corda"}, ModelError, "init_lora_weights 'corda'"),
        ({"a_setting_of_next_year": "x"}, ModelError, "asks for a_setting_of_next_year"),
        ({"r": "4"}, ModelError, "has r '4'"),
        ({"r": 8}, ModelError, "tells of rank 8, and its tensors have 4"),
        ({"r": 10**11}, ModelError, "tells of rank 100000000000"),
        ({"rank_pattern": {"query": 10**11}}, ModelError, "tells of rank 4, 100000000000"),
        ({"rank_pattern": {"query": "4"}}, ModelError, "takes names of modules with numbers"),
        ({"rank_pattern": {r"([\w.]|[\w.])+!": 4}}, ModelError, "takes names of modules with numbers"),
        ({"alpha_pattern": {"(": 4}}, ModelError, "takes names of modules with numbers"),
        ({"base_model_name_or_path": None}, ModelError, "names no model; say it as `base_model`"),
        ({"base_model_name_or_path": "package:evil.module/model"}, UnsafeModelError, "no hub id"),
        ({"base_model_name_or_path": "/no/where"}, ModelError, "not a directory on this machine"),
    ],
)
def test_what_an_adapter_must_not_ask_for_is_refused(
    adapter: Path, told: dict[str, Any], kind: type[ModelError], why: str
) -> None:
    _change(adapter, **told)
    with pytest.raises(kind, match=why):
        open_model(str(adapter))


def test_a_mapping_to_a_class_of_transformers_is_left_unread(adapter: Path) -> None:
    _change(adapter, auto_mapping={"base_model_class": "BertModel", "parent_library": "transformers.no_such_module"})
    load_transformer("AutoModel", open_model(str(adapter)), device="cpu", precision="float32")


def _pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _break(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 40)


def _rename_a_tensor(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: {name.replace("query", "quarry"): t for name, t in tensors.items()})


def _lose_a_tensor(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: dict(list(tensors.items())[1:]))


def _add_a_tensor(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: {**tensors, "base_model.model.bonus.weight": torch.ones(2)})


def _rewrite(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def _copy_the_base(adapter: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (adapter / name).write_bytes((adapter.parent / "base" / name).read_bytes())


def _make_the_base_an_adapter(adapter: Path) -> None:
    (adapter.parent / "base").rename(adapter.parent / "whole")
    (adapter.parent / "base").mkdir()
    for path in adapter.iterdir():
        (adapter.parent / "base" / path.name).write_bytes(path.read_bytes())
    _change(adapter.parent / "base", base_model_name_or_path=str(adapter.parent / "whole"))


def _spoil_the_base(adapter: Path) -> None:
    base = adapter.parent / "base"
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def _quantize_the_base(adapter: Path) -> None:
    config = adapter.parent / "base/config.json"
    write_json(config, {**json.loads(config.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_pickle, "pickled weights alone.*gristmill import"),
        (_break, "is not safetensors"),
        (_rename_a_tensor, "quarry, which its base has not"),
        (_lose_a_tensor, "it lacks"),
        (_add_a_tensor, "bonus.weight, which no part of the base takes"),
        (_copy_the_base, "is a whole model and, by its adapter_config.json, an adapter for another"),
        (_make_the_base_an_adapter, "adapter of an adapter"),
        (_spoil_the_base, "pickled weights alone.*gristmill import"),
        (_quantize_the_base, "quantized .bitsandbytes.; say as `base_model`"),
    ],
)
def test_an_adapter_or_base_that_is_not_whole_is_told(adapter: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(adapter)
    open_model.cache_clear()
    with pytest.raises(ModelError, match=told):
        load_transformer("AutoModel", open_model(str(adapter)), device="cpu", precision="float32")


def test_an_adapter_for_a_head_is_refused_by_a_task_without_it(tmp_path: Path) -> None:
    base = _base(tmp_path)
    save_adapter(AutoModel.from_pretrained(base), tmp_path / "adapter", base=base, **_QUERIES)
    spec = make_spec(task="text-classification", model=str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="no classification head"):
        make_task(spec, open_model_of(spec))


def test_an_adapter_from_elsewhere_names_no_directory_of_this_machine(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.model.files.find_model", lambda name, revision: (adapter, adapter.parent))
    monkeypatch.chdir(adapter.parent)
    for named in (str(adapter.parent / "base"), "./base", "base", "../base"):
        _change(adapter, base_model_name_or_path=named)
        with pytest.raises(UnsafeModelError, match="which is no hub id"):
            open_model("org/adapter")


def test_without_peft_the_extra_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.model.adapters.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'gristmill\[lora\]'"):
        open_model(str(adapter))


def test_an_adapter_is_hashed_with_its_base(adapter: Path) -> None:
    files = open_model(str(adapter))
    before, stamp = files.hashes(), files.stamp()
    assert {"adapter_model.safetensors", "base/model.safetensors", "base/tokenizer.json"} <= before.keys()
    config = adapter.parent / "base/config.json"
    write_json(config, {**json.loads(config.read_text()), "hidden_act": "relu"})
    after = files.hashes()
    assert [name for name in before if before[name] != after[name]] == ["base/config.json"]
    assert files.stamp() != stamp


def test_all_nodes_take_the_commit_of_the_base_too(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = adapter.parent / "models--org--base/snapshots/c0ffee"
    base.parent.mkdir(parents=True)
    (adapter.parent / "base").rename(base)
    places = {"org/base": (base, base.parents[1]), str(adapter): (adapter, adapter)}
    monkeypatch.setattr("udfs.model.files.find_model", lambda name, revision: places[name])
    _change(adapter, base_model_name_or_path="org/base")
    spec = pin(make_spec(task="feature-extraction", model=str(adapter)))
    assert (spec.revision, spec.base_revision) == (None, "c0ffee")
    assert pin(replace(spec, base_model="org/base")).base_revision == "c0ffee"


@pytest.mark.parametrize("where", ["quantization_config", "text_config"])
def test_quantized_models_are_refused_with_what_to_do(tmp_path: Path, where: str) -> None:
    path = tmp_path / "model"
    save_writer(path)
    told = {"quant_method": "awq", "bits": 4}
    config = json.loads((path / "config.json").read_text())
    nested = told if where == "quantization_config" else {"quantization_config": told}
    write_json(path / "config.json", {**config, where: nested})
    asked = {"task": "text-generation", "model": str(path)}
    for engine in ("auto", "transformers"):
        spec = make_spec(**asked, engine=engine)
        with pytest.raises(ModelError, match=r"quantized \(awq\).*score.engine: vllm"):
            make_task(spec, open_model_of(spec))
    make_task(make_spec(**asked, engine="vllm"), open_model_of(make_spec(**asked)))
    with pytest.raises(ModelError, match="take the model it was made of"):
        make_task(make_spec(task="feature-extraction", model=str(path)), open_model(str(path)))


@pytest.mark.parametrize("more", [{}, {"quantization_config": {"bits": 4, "group_size": 64}}], ids=["alone", "both"])
def test_weights_for_mlx_are_refused_and_not_sent_to_vllm(tmp_path: Path, more: dict[str, Any]) -> None:
    path = Path(save_writer(tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", {**config, "quantization": {"bits": 4, "group_size": 64}, **more})
    spec = make_spec(task="text-generation", model=str(path))
    with pytest.raises(ModelError, match=r"quantized \(for MLX\).*take the model it was made of$"):
        make_task(spec, open_model_of(spec))
