"""What kinds of weights a model's directory holds, and the way out for those that gristmill does not read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from udfs.errors import ModelError, UnsafeModelError
from udfs.model.json_files import load_object
from udfs.model.tensors import check_whole

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# A trainer leaves these beside the weights; OpenVINO's are no pickles.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states", "openvino_")
_GGUF = "weights for llama.cpp (GGUF); take the model that they were made of, in safetensors"
_FOREIGN = {
    ".gguf": _GGUF,
    ".h5": "TensorFlow's weights; load it with an older transformers (`from_tf=True`), which saves safetensors",
    ".msgpack": "Flax's weights; load it with an older transformers (`from_flax=True`), which saves safetensors",
    ".onnx": "ONNX's weights; take the model that they were made of, in safetensors",
    ".xml": "OpenVINO's weights; take the model that they were made of, in safetensors",
    ".ot": "weights for rust-bert; take the model that they were made of, in safetensors",
}


def check_weights(name: str, folder: Path, *, revision: str | None = None, on_hub: bool = False) -> None:
    """Refuse a model without safetensors, and an index of shards that points elsewhere.

    Args:
        name: The model's, as the user gave it.
        folder: Where its weights lie.
        revision: As the user gave it.
        on_hub: It was fetched, without weights of other kinds.

    Raises:
        UnsafeModelError: Its weights are pickled, or an index names files that are not beside it.
        ModelError: It has none, or of another library's.
    """
    if not list(folder.glob("*.safetensors")):
        refuse_other_weights(name, folder, revision=revision, on_hub=on_hub)
    shards = list_shards(folder, INDEX) if (folder / INDEX).is_file() else []
    for shard in shards:
        if not is_beside(folder, shard):
            raise UnsafeModelError(f"model {name!r}: {INDEX} names {shard!r}, which is not a file beside it")
    if (folder / WEIGHTS).is_file():
        shards = [WEIGHTS]
    if not shards:
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        raise ModelError(
            f"model {name!r} has {', '.join(found[:3])} in {folder}, but neither {WEIGHTS} nor {INDEX}, which are what "
            "is read; give the file of its weights that name"
        )
    for shard in shards:
        check_whole(folder / str(shard))


def check_named_weights(name: str, config: dict[str, Any]) -> None:
    """Refuse a config.json that names another file of weights: its index may lead out of the model's directory.

    Raises:
        UnsafeModelError: It does.
    """
    if (named := config.get("transformers_weights")) not in (None, WEIGHTS, INDEX):
        raise UnsafeModelError(
            f"model {name!r}: config.json names {named!r} as its weights (transformers_weights), and gristmill reads "
            f"{WEIGHTS} or {INDEX} alone; give the file that name"
        )


def refuse_other_weights(name: str, folder: Path, *, revision: str | None = None, on_hub: bool = False) -> None:
    """Tell what a model has in the place of safetensors, and the way out; as `check_weights`.

    Raises:
        UnsafeModelError: Pickles.
        ModelError: Another library's weights, or none.
    """
    if next(find_pickled(folder), None):
        raise UnsafeModelError(
            f"model {name!r} has pickled weights alone, and loading a pickle can run code; "
            f"{_advise_import(name, revision)}"
        )
    refuse_foreign(name, folder, on_hub=on_hub)
    told = f"model {name!r} has no weights (*.safetensors) in {folder}"
    if on_hub:
        told = (
            f"model {name!r} has no safetensors on the hub; if it has pickled weights, {_advise_import(name, revision)}"
        )
    raise ModelError(told)


def refuse_foreign(name: str, folder: Path, *, on_hub: bool = False) -> None:
    """Refuse a model that has weights of a library that gristmill does not read, and none of its own.

    Those of a hub's model are not fetched: by custom its name tells of GGUF.

    Raises:
        ModelError: Whose they are, and what to do.
    """
    if on_hub and "gguf" in name.lower():
        raise ModelError(f"model {name!r} has {_GGUF}")
    suffixes = {path.suffix for path in folder.iterdir()}
    if told := next((told for suffix, told in _FOREIGN.items() if suffix in suffixes), None):
        raise ModelError(f"model {name!r} has {told}")


def _advise_import(name: str, revision: str | None) -> str:
    """The command that makes safetensors of a model's pickled weights."""
    told = f" --revision {shlex.quote(revision)}" if revision else ""
    target = shlex.quote(f"models/{PurePath(name).name or 'model'}")
    return (
        f"`gristmill import {shlex.quote(name)} {target}{told}` makes safetensors of them once, in a process that is "
        "locked in; then name that directory as the model"
    )


def find_pickled(folder: Path) -> Iterator[Path]:
    """Files of a directory that are pickled weights by their names, in order."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLED and path.is_file() and not path.name.startswith(_NO_WEIGHTS):
            yield path


def list_shards(folder: Path, index: str) -> list[object]:
    """The files that an index names, each once; they may be anything."""
    named = load_object(folder / index).get("weight_map")
    shards = list(named.values()) if isinstance(named, dict) and named else [named]
    return list({repr(shard): shard for shard in shards}.values())


def is_beside(folder: Path, name: object) -> bool:
    """A name that an index gives is that of a file in its directory."""
    return isinstance(name, str) and Path(name).name == name and (folder / name).is_file()
