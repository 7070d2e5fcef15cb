"""Models of a real MLflow registry: resolved once, laid out as a directory, checked like any other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters import save_adapter
from tests.embedders import vectors
from tests.engine_rows import undisturbed_rows
from tests.models import make_classifier, make_encoder
from tests.registries import Registry, open_registry, use_home
from udfs.errors import ModelError, UnsafeModelError
from udfs.model.files import open_model, open_model_of, pin
from udfs.model.flavors import read_parts
from udfs.model.importing import import_model
from udfs.tasks.registry import make_spec

mlflow = pytest.importorskip("mlflow")
_BERT: dict[str, Any] = {"task": "text-classification", "components": ["tokenizer"], "model_binary": "model"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    open_model.cache_clear()
    return open_registry(tmp_path / "registry", monkeypatch)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return Path(make_encoder(tmp_path / "encoder"))


@pytest.fixture
def classifier(tmp_path: Path) -> dict[str, str | Path]:
    """A classifier in the two parts that MLflow makes of a pipeline."""
    whole, tokenizer = Path(make_classifier(tmp_path / "model", ["good", "bad"])), tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in _TOKENIZER:
        (whole / name).rename(tokenizer / name)
    return {"model": whole, "components/tokenizer": tokenizer}


def _embed(model: str, **options: Any) -> np.ndarray:
    """Vectors of a model that the engine's process is told by its pinned name."""
    pinned = pin(make_spec("feature-extraction", model, **options))
    named = {name: getattr(pinned, name) for name in ("revision", "base_model", "base_revision")}
    return vectors(pinned.model, ["a red kettle", "a spade"], **named)


@pytest.mark.long
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_models_that_mlflow_has_logged_answer_as_they_did_before(
    store: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    import transformers
    from sentence_transformers import SentenceTransformer

    monkeypatch.chdir(tmp_path)  # MLflow has artifacts here
    registry = open_registry(tmp_path / "registry", monkeypatch, store=store)
    mlflow.set_tracking_uri(registry.uri)
    request.addfinalizer(lambda: mlflow.set_tracking_uri(""))
    classifier = make_classifier(tmp_path / "model", ["good", "bad"])
    told: dict[str, Any] = {"pip_requirements": ["transformers"]}
    with mlflow.start_run():
        pipe = transformers.pipeline("text-classification", model=classifier)
        mlflow.transformers.log_model(pipe, name="m", registered_model_name="shop.feedback", **told)
    with mlflow.start_run():
        sentences = SentenceTransformer(str(encoder))
        mlflow.sentence_transformers.log_model(sentences, name="e", registered_model_name="a model", **told)
    registry.client.set_registered_model_alias("a model", "champion", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # what the program has set is enough
    open_model.cache_clear()
    assert np.allclose(_embed("models:/a model@champion"), _embed(str(encoder)), atol=1e-6)
    names = {path.name for path in open_model("models:/shop.feedback/1").root.iterdir()}
    assert names == {"config.json", "model.safetensors", *_TOKENIZER}
    specs = [make_spec("text-classification", m, precision="float32") for m in ("models:/shop.feedback/1", classifier)]
    ours, before = (undisturbed_rows(["good tea"], pin(spec))[0]["scores"] for spec in specs)
    assert ours == before


def test_an_alias_is_pinned_to_the_version_and_all_nodes_take_that_copy_without_the_registry(
    registry: Registry, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.add_sentences("embedder", encoder)
    registry.add_sentences("embedder", encoder, alias="champion")
    spec = make_spec(task="feature-extraction", model="models:/embedder@champion")
    pinned = pin(spec)
    assert "'models:/embedder@champion' is version 2" in capsys.readouterr().err
    assert pinned.model == "models:/embedder/2"
    assert pinned == pin(pinned) == pin(replace(spec, model="models:/embedder/2"))
    assert pin(replace(spec, model="models:/embedder/1")).revision != pinned.revision
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://nowhere.invalid")
    open_model.cache_clear()
    assert open_model_of(pinned).hashes() == open_model(str(encoder)).hashes()
    registry.client.set_registered_model_alias("embedder", "champion", "1")
    assert open_model_of(pinned).root.parent.name == "2"


def test_a_copy_is_fetched_once_and_is_whole_or_not_there(
    registry: Registry, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_sentences("embedder", encoder)
    fetch, fetched = mlflow.artifacts.download_artifacts, []

    def watch(*, artifact_uri: str, dst_path: str) -> str:
        fetched.append(artifact_uri)
        if artifact_uri.endswith("transformer") and len(fetched) < 3:
            fetch(artifact_uri=artifact_uri, dst_path=dst_path)
            raise OSError("the network went away")
        return fetch(artifact_uri=artifact_uri, dst_path=dst_path)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", watch)
    with pytest.raises(ModelError, match=r"model.sentence_transformer of version 1 cannot be fetched: the network"):
        open_model("models:/embedder/1")
    root = open_model("models:/embedder/1").root
    open_model.cache_clear()
    assert open_model("models:/embedder/1").root == root
    assert [uri.rpartition("/")[2] for uri in fetched] == [*["MLmodel", "model.sentence_transformer"] * 2, "MLmodel"]
    assert [path.name for path in root.parent.iterdir() if not path.name.endswith(".lock")] == [root.name]


def test_executors_find_what_the_driver_sent_on_their_path(
    registry: Registry, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_sentences("embedder", encoder)
    pinned = pin(make_spec(task="feature-extraction", model="models:/embedder/1"))
    sent = tmp_path / "sent"
    shutil.copytree(open_model_of(pinned).root, sent / str(pinned.revision))
    use_home(tmp_path / "other", monkeypatch)
    open_model.cache_clear()
    with pytest.raises(ModelError, match=r"neither in .*other/gristmill, nor sent by the driver; set HF_HOME"):
        open_model_of(pinned)
    monkeypatch.setattr(sys, "path", [*sys.path, str(sent)])
    assert open_model_of(pinned).hashes() == open_model(str(encoder)).hashes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("models:/embedder/7", "has 'embedder', and of its versions 1"),
        ("models:/embedder@best", "has 'embedder', and of its aliases champion"),
        ("models:/nothing/1", "has no model 'nothing'"),
        ("models:/nothing@champion", "has no model 'nothing'"),
        ("models:/embedder", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/embedder/Production", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/embedder/latest", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models://profile@databricks/embedder/1", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
    ],
)
def test_a_version_that_is_not_there_is_told_with_those_that_are(
    registry: Registry, encoder: Path, name: str, told: str
) -> None:
    registry.add_sentences("embedder", encoder, alias="champion")
    with pytest.raises(ModelError, match=told):
        open_model(name)


def test_a_revision_is_for_hub_ids(registry: Registry) -> None:
    with pytest.raises(ModelError, match="revision is for hub ids; take models:/NAME/VERSION"):
        open_model("models:/embedder@champion", "3")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "none is named: set MLFLOW_TRACKING_URI"),
        (
            {"MLFLOW_TRACKING_URI": "http://ann:s3cret@127.0.0.1:9"},
            r"cannot be looked up in the registry http://\*\*\*@",
        ),
        ({"MLFLOW_REGISTRY_URI": "postgresql://ann:s3cret@127.0.0.1:9/db"}, r"postgresql://\*\*\*@127.0.0.1"),
        ({"MLFLOW_TRACKING_URI": "nonsense://x"}, "cannot be looked up in the registry nonsense://x"),
    ],
    ids=["no registry", "no network", "no database", "no such store"],
)
def test_a_registry_that_does_not_answer_is_told_without_passwords(
    env: dict[str, str], told: str, tmp_path: Path
) -> None:
    code = "from udfs.model.files import open_model; open_model('models:/embedder@champion')"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    more = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_TRACKING_TOKEN": "tok-1234", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**kept, **more, **env, "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert "ModelError: [model] model 'models:/embedder@champion'" in last
    assert re.search(told, last), last
    assert "s3cret" not in done.stdout + done.stderr
    assert "tok-1234" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())  # no empty registry was made


def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.model.registry.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'gristmill\[mlflow\]'"):
        open_model("models:/embedder/1")


def test_a_flavor_that_is_neither_is_told(registry: Registry) -> None:
    registry.add("forest", {"sklearn": {"pickled_model": "model.pkl"}}, {})
    with pytest.raises(ModelError, match=r"has the flavor python_function, sklearn; gristmill reads transformers and"):
        open_model("models:/forest/1")
    registry.add("own", {}, {})
    with pytest.raises(ModelError, match=r"has the flavor python_function; gristmill"):
        open_model("models:/own/1")


def test_pickled_weights_are_refused_and_the_command_that_brings_them_in_takes_the_registry(
    registry: Registry, encoder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    registry.add_sentences("embedder", encoder, alias="old")
    with pytest.raises(UnsafeModelError, match=r"pickled weights alone.*`gristmill import models:/embedder@old "):
        open_model("models:/embedder@old")
    made = import_model("models:/embedder@old", tmp_path / "made")
    assert open_model(str(made.target)).transformer == made.target


def test_a_model_that_needs_code_of_its_own_is_refused(registry: Registry, encoder: Path) -> None:
    listed = json.loads((encoder / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (encoder / "modules.json").write_text(json.dumps(listed))
    registry.add_sentences("embedder", encoder)
    with pytest.raises(UnsafeModelError, match=r"models:/embedder/1.*asks to run the code of 'custom_st.Transformer'"):
        open_model("models:/embedder/1")
    registry.add("odd", {"transformers": {**_BERT, "model_binary": "../elsewhere"}}, {})
    with pytest.raises(UnsafeModelError, match="outside of the model's artifacts"):
        open_model("models:/odd/1")


def test_a_pipelines_model_and_tokenizer_are_one_directory(
    registry: Registry, classifier: dict[str, str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry.add("feedback", {"transformers": {**_BERT, "prompt_template": "Say {prompt}"}}, classifier)
    files = open_model("models:/feedback/1")
    assert files.tokenizer == files.root
    assert set(files.hashes()) == {"config.json", "model.safetensors", *_TOKENIZER}
    assert "has a prompt template, which gristmill does not lay around" in capsys.readouterr().err


def test_a_model_that_was_logged_without_its_weights_is_the_hubs_at_that_commit(
    registry: Registry, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c0ffee" + "0" * 34
    snapshot = encoder.parent / "models--org--model/snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    encoder.rename(snapshot)
    asked = []

    def fetch(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    refers = {"source_model_name": "org/model", "source_model_revision": commit, "components": ["tokenizer"]}
    registry.add("light", {"transformers": refers}, {}, alias="now")
    pinned = pin(make_spec(task="feature-extraction", model="models:/light@now"))
    assert (pinned.model, pinned.revision) == ("org/model", commit)
    assert asked == [("org/model", commit)]
    registry.add("light", {"transformers": {**refers, "tokenizer_name": "org/other", "tokenizer_revision": "1"}}, {})
    with pytest.raises(ModelError, match=r"refers to org/model at c0ffee.*tokenizer from org/other at 1"):
        open_model("models:/light/2")
    registry.add("light", {"transformers": {**refers, "source_model_name": "/home/ann/model"}}, {})
    with pytest.raises(UnsafeModelError, match=r"refers to '/home/ann/model', on the machine"):
        open_model("models:/light/3")


def test_an_adapter_of_the_registry_changes_a_base_of_the_registry(
    registry: Registry, encoder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from transformers import AutoModel

    adapter = tmp_path / "adapter"
    save_adapter(AutoModel.from_pretrained(encoder), adapter, base="org/base", target_modules=["query"])
    registry.add_sentences("base", encoder, alias="prod")
    told = {"peft_adaptor": "peft", "source_model_name": "org/base", "source_model_revision": "abc", "components": []}
    registry.add("tuned", {"transformers": told}, {"peft": adapter})
    spec = make_spec(task="feature-extraction", model="models:/tuned/1", base_model="models:/base@prod")
    pinned = pin(spec)
    assert (pinned.model, pinned.base_model) == ("models:/tuned/1", "models:/base/1")
    assert pin(pinned) == pinned
    assert np.allclose(_embed(spec.model, base_model=spec.base_model), _embed(str(adapter), base_model=str(encoder)))
    files = open_model_of(pinned)
    assert files.adapter is not None
    assert (files.adapter.base, files.adapter.revision) == ("org/base", "abc")


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "flavors: 3", "flavors: {transformers: 1}", "a: [", "flavors: {transformers: {model_binary: /etc}}"],
)
def test_an_mlmodel_of_another_shape_is_told(text: str) -> None:
    with pytest.raises(ModelError, match="models:/x/1"):
        read_parts("models:/x/1", text)
