"""What an MLmodel file says of a model: of which flavor it is, and where its files lie among the artifacts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from udfs.errors import ModelError, UnsafeModelError
from udfs.model.adapters import ADAPTER
from udfs.model.json_files import load_object

_SENTENCE_DATA = "model.sentence_transformer"
_OLD_MODEL = "pipeline"  # before MLflow 2.4
_TOKENIZER = "components/tokenizer"


@dataclass(frozen=True)
class Parts:
    """What a model is made of.

    Args:
        model: The directory of its config.json and weights, or of an adapter.
        tokenizer: The directory of its tokenizer; None where that lies beside the weights.
        hub_id: The hub's model that it refers to; then nothing of it lies among the artifacts.
        commit: Of `hub_id`.
        base: Of an adapter, the hub id and the commit of the model that it changes, as they are known.
        warnings: What MLflow would do with it, and gristmill does not.
    """

    model: str = ""
    tokenizer: str | None = None
    hub_id: str | None = None
    commit: str | None = None
    base: tuple[str | None, str | None] = (None, None)
    warnings: tuple[str, ...] = ()

    def complete(self, folder: Path) -> None:
        """Have an adapter's own file say which commit of its base it changes: MLflow keeps that elsewhere."""
        if not (folder / ADAPTER).is_file() or self.base == (None, None):
            return
        told = load_object(folder / ADAPTER)
        name, revision = self.base
        told["base_model_name_or_path"] = name or told.get("base_model_name_or_path")
        told["revision"] = revision or told.get("revision")
        (folder / ADAPTER).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def read_parts(name: str, text: str) -> Parts:
    """Read an MLmodel file.

    Args:
        name: The model's, as the user gave it.
        text: The file.

    Raises:
        ModelError: It is no MLmodel, its flavor is none that gristmill reads, or its parts are in different places.
        UnsafeModelError: It names files outside of its artifacts.
    """
    try:
        told = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"model {name!r} has an MLmodel that is no YAML") from error
    flavors = told.get("flavors") if isinstance(told, dict) else None
    if not isinstance(flavors, dict) or not all(isinstance(flavor, dict) for flavor in flavors.values()):
        raise ModelError(f"model {name!r} has an MLmodel without flavors")
    if "sentence_transformers" in flavors:
        data = flavors.get("python_function", {}).get("data") or _SENTENCE_DATA
        return Parts(model=_check_inside(name, data))
    if "transformers" in flavors:
        return _read_transformers(name, flavors["transformers"])
    raise ModelError(
        f"model {name!r} has the flavor {', '.join(sorted(flavors)) or 'of nothing'}; gristmill reads transformers and "
        "sentence_transformers: log it by `mlflow.transformers.log_model` or `mlflow.sentence_transformers.log_model`"
    )


def _read_transformers(name: str, flavor: dict[str, Any]) -> Parts:
    binary, hub_id, commit = (flavor.get(key) for key in ("model_binary", "source_model_name", "source_model_revision"))
    warnings = (
        ("has a prompt template, which gristmill does not lay around a prompt: write it as score.prompt",)
        if flavor.get("prompt_template")
        else ()
    )
    saved = "tokenizer" in (flavor.get("components") or []) and not flavor.get("tokenizer_name")
    tokenizer = _TOKENIZER if saved else None
    if adapter := flavor.get("peft_adaptor"):
        if binary:
            raise ModelError(
                f"model {name!r} is an adapter that was logged with its base; merge them by peft, `merge_and_unload`, "
                "and log the whole model"
            )
        return Parts(_check_inside(name, adapter), tokenizer, base=(hub_id, commit), warnings=warnings)
    if binary or not commit:
        return Parts(_check_inside(name, binary or _OLD_MODEL), tokenizer, warnings=warnings)
    _check_one_repository(name, flavor)
    return Parts(hub_id=str(hub_id), commit=str(commit), warnings=warnings)


def _check_one_repository(name: str, flavor: dict[str, Any]) -> None:
    """Refuse a model whose weights and tokenizer are of two repositories, or of two commits."""
    model = (flavor.get("source_model_name"), flavor.get("source_model_revision"))
    tokenizer = (flavor.get("tokenizer_name", model[0]), flavor.get("tokenizer_revision", model[1]))
    if tokenizer != model:
        raise ModelError(
            f"model {name!r} refers to {model[0]} at {model[1]}, and has its tokenizer from {tokenizer[0]} at "
            f"{tokenizer[1]}; log it with its files (`save_pretrained=True`)"
        )


def _check_inside(name: str, path: Any) -> str:
    """A path of the artifacts that an MLmodel names."""
    parts = PurePosixPath(str(path))
    if not isinstance(path, str) or parts.is_absolute() or ".." in parts.parts or ":" in path:
        raise UnsafeModelError(f"model {name!r}: MLmodel names {path!r}, outside of the model's artifacts")
    return str(parts)
