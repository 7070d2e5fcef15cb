"""A real MLflow registry in a directory: a store of files, or a database of sqlite."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass(frozen=True)
class Registry:
    """Where a registry is, and where what is put into it lies."""

    uri: str
    folder: Path

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri, self.uri)

    def add(self, name: str, flavors: dict[str, Any], parts: dict[str, str | Path], alias: str | None = None) -> str:
        """A new version of a model, its parts laid out as MLflow does; its number."""
        from mlflow.exceptions import MlflowException

        client = self.client
        place = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        for part, source in parts.items():
            shutil.copytree(source, place / part)
        place.mkdir(exist_ok=True)
        (place / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": {}, **flavors}}))
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name)
        version = str(client.create_model_version(name, source=str(place)).version)
        if alias:
            client.set_registered_model_alias(name, alias, version)
        return version

    def add_sentences(self, name: str, model: str | Path, *, alias: str | None = None) -> str:
        """A new version of a sentence-transformers model."""
        return self.add(name, {"sentence_transformers": {}}, {"model.sentence_transformer": model}, alias)


def open_registry(folder: Path, monkeypatch: pytest.MonkeyPatch, *, store: str = "file") -> Registry:
    """A new registry, which this process and all that it starts ask; the copies of its models have a new home too."""
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True)
    uri = (folder / "store").as_uri() if store == "file" else f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    use_home(folder / "hf", monkeypatch)
    os.environ.pop("MLFLOW_REGISTRY_URI", None)
    return Registry(uri, artifacts)


def use_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and those that it starts keep copies in another HF_HOME."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HOME", str(home))
