"""Code that comes with a model: never run, and ignored where transformers has the architecture itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.engine_rows import undisturbed_rows
from tests.models import make_classifier, make_encoder, write_json
from tests.random_writers import save_writer
from udfs.errors import ModelError, UnsafeModelError
from udfs.model.architectures import known_architectures
from udfs.model.files import open_model
from udfs.model.loading import load_transformer
from udfs.model.own_code import check_code_not_needed
from udfs.model.tokenizer import load_tokenizer
from udfs.tasks.registry import make_spec

TEXTS = ["red kettle", "the dog is not very good", "tea"]
_CODE = ("configuration_own", "modeling_own", "tokenization_own", "custom_st", "custom_generate/generate", "setup")
_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForSequenceClassification": "someone/elsewhere--modeling_own.OwnClassifier",
    "AutoModelForCausalLM": "modeling_own.OwnWriter",
}


def _add_code(model: Path) -> Path:
    """Python files that leave a mark if they are run, named wherever a model can name them; returns the mark."""
    mark = model.parent / "ran"
    for name in _CODE:
        (model / name).parent.mkdir(exist_ok=True)
        (model / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit('it ran')\n")
    _change(model / "config.json", auto_map=_MAP)
    _change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    _change(model / "generation_config.json", custom_generate="custom_generate")
    open_model.cache_clear()
    return mark


def _change(file: Path, **values: Any) -> None:
    write_json(file, {**(json.loads(file.read_text()) if file.exists() else {}), **values})


@pytest.mark.parametrize("kind", ["Bert", "NomicBert", "Gte", "Roberta"])
def test_a_model_that_names_code_answers_as_transformers_does_without(tmp_path: Path, kind: str) -> None:
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip("not in this transformers")
    path = tmp_path / "model"
    model = make_classifier(path, ["a", "b", "c"], kind=kind)
    spec = make_spec(task="text-classification", model=model, precision="float32")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    mark = _add_code(path)
    check_code_not_needed(open_model(str(path)))
    rows = undisturbed_rows(TEXTS, spec)
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.inference_mode():
            wanted = plain(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy()
        np.testing.assert_allclose([score for _, score in row["scores"]], wanted, atol=1e-3)
    assert not mark.exists()


def test_a_decoder_that_names_code_writes_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "model"
    plain = save_writer(path, "Phi3")
    spec = make_spec(task="text-generation", model=plain, max_new_tokens=6, precision="float32")
    wanted = [row["text"] for row in undisturbed_rows(["abc", "de"], spec)]
    mark = _add_code(path)
    _change(path / "config.json", auto_map=_MAP, architectures=["Phi3ForCausalLM"])
    check_code_not_needed(open_model(plain))
    assert [row["text"] for row in undisturbed_rows(["abc", "de"], spec)] == wanted
    load_tokenizer(open_model(plain))
    assert not mark.exists()


def test_an_architecture_that_its_own_code_alone_has_is_refused(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path / "model"))
    mark = _add_code(path)
    for kind in ("new", "evil", None, ["bert"]):
        _change(path / "config.json", model_type=kind)
        with pytest.raises(UnsafeModelError, match="asks to run Python code"):
            open_model(str(path))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "told"),
    [("Bert", {"position_embedding_type": "alibi"}), ("XLMRoberta", {"position_embedding_type": "rotary"})],
)
def test_a_model_that_is_another_under_a_known_name_is_refused_before_it_loads(
    tmp_path: Path, kind: str, told: dict[str, Any]
) -> None:
    """As jina-embeddings-v2 and -v3 call themselves `bert` and `xlm-roberta`."""
    from safetensors.numpy import load_file, save_file

    path = Path(make_encoder(tmp_path / "model", kind=kind))
    mark = _add_code(path)
    _change(path / "config.json", **told, architectures=["OwnModel"])
    held = load_file(path / "model.safetensors")
    renamed = {k.replace("intermediate.dense", "gated"): v for k, v in held.items() if "position" not in k}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    files = open_model(str(path))
    with pytest.raises(UnsafeModelError, match="needs Python code that comes with it"):
        check_code_not_needed(files)
    with pytest.raises(UnsafeModelError, match="needs Python code that comes with it"):
        load_transformer("AutoModel", files, device="cpu", precision="float32")
    assert not mark.exists()


def test_a_size_that_the_own_code_reads_under_another_name_is_refused(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path / "model"))
    mark = _add_code(path)
    told = json.loads((path / "config.json").read_text())
    _change(path / "config.json", n_embd=told["hidden_size"], hidden_size=64)
    with pytest.raises(UnsafeModelError, match="needs Python code"):
        check_code_not_needed(open_model(str(path)))
    with pytest.raises(ModelError):
        load_transformer("AutoModel", open_model(str(path)), device="cpu", precision="float32")
    assert not mark.exists()


def test_modules_of_others_are_refused_whatever_transformers_has(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path / "model"))
    mark = _add_code(path)
    write_json(path / "modules.json", [{"path": "", "type": "custom_st.Transformer"}])
    with pytest.raises(UnsafeModelError, match="asks to run the code of"):
        open_model(str(path))
    assert not mark.exists()


def test_the_table_of_architectures_is_transformers_own() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert known_architectures() == set(CONFIG_MAPPING_NAMES)
