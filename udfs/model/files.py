"""Where a model lies, and whether its files can be trusted.

A model is untrusted input. Weights are safetensors or nothing; no file of it is ever run; nothing that it names is
read outside its own directory. `find_model` does the only network access there is, once per node; all loading is
from the checked copy.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udfs.errors import ModelError, UnsafeModelError, first_line
from udfs.model.modules import STATIC, TRANSFORMER, read_modules

if TYPE_CHECKING:
    from udfs.spec import ScoreSpec

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}
_KEPT = {".jinja", ".json", ".model", ".safetensors", ".spm", ".txt"}  # files that decide an answer
# transformers writes down where these were when the model was saved, and looks for them beside the others.
_FILES_NOT_READ = {"special_tokens_map_file", "tokenizer_file"}
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "*/checkpoint-*/*"]


@dataclass(frozen=True)
class ModelFiles:
    """A checked model on this machine's disk.

    Args:
        name: As the user gave it.
        root: The model's directory.
        transformer: Where its config.json and weights lie: `root`, or what modules.json says.
        modules: sentence-transformers' modules after the transformer, as (class name, directory).
        config: The transformer's config.json; {} of a static model.
        commit: Of a hub's model.
        is_static: There is no transformer: a table has a vector for each token.
    """

    name: str
    root: Path
    transformer: Path
    modules: tuple[tuple[str, Path], ...] = ()
    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    commit: str | None = None
    is_static: bool = False

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON file beside the weights, or else at the root; {} where there is none."""
        for folder in (self.transformer, self.root):
            if (folder / path).is_file():
                return _load_object(folder / path)
        return {}

    def read_module(self, folder: Path) -> dict[str, Any]:
        """The config.json of one of its modules; {} where there is none."""
        return _load_object(folder / "config.json") if (folder / "config.json").is_file() else {}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that decides an answer, by its path below the root."""
        files = (p for p in sorted(self.root.rglob("*")) if p.suffix in _KEPT and p.is_file())
        return {str(p.relative_to(self.root)): _sha256(p) for p in files}

    def stamp(self) -> list[tuple[str, int, int]]:
        """Path, size and time of every file, looked up now: a model that was saved anew is another one."""
        found = ((path, path.stat()) for path in sorted(_walk(self.root)) if path.is_file())
        return [(str(path.relative_to(self.root)), stat.st_size, stat.st_mtime_ns) for path, stat in found]


@functools.lru_cache(maxsize=16)
def open_model(name: str, revision: str | None = None) -> ModelFiles:
    """Find a model, fetch it if it is a hub id, and check every file of it.

    Raises:
        ModelError: It is not there, or has no weights.
        UnsafeModelError: It asks for remote code, has pickled weights alone, or links out of its directory.
    """
    root, boundary = find_model(name, revision)
    check_links(name, root, boundary)
    check_no_code(name, root)
    (first, transformer), *modules = _read_modules(name, root)
    check_named_files(name, root, transformer)
    if first != STATIC and not (transformer / "config.json").is_file():
        raise ModelError(f"model {name!r} has no config.json in {transformer}; it is not a transformers model")
    check_weights(name, transformer)
    config = {} if first == STATIC else _load_object(transformer / "config.json")
    commit = None if root == boundary else root.name
    return ModelFiles(name, root, transformer, tuple(modules), config, commit, is_static=first == STATIC)


def pin(spec: ScoreSpec) -> ScoreSpec:
    """With the commit that this machine has of a hub's model: every node takes that, whatever the hub has by then."""
    commit = open_model(spec.model, spec.revision).commit
    return replace(spec, revision=commit) if commit else spec


def find_model(name: str, revision: str | None = None) -> tuple[Path, Path]:
    """The model's directory, and the directory that its links may not leave.

    A hub id is fetched into the hub's cache, one download a node however many workers ask; with `HF_HUB_OFFLINE=1`
    it must be there already.
    """
    if name.startswith("package:"):
        root = _find_in_package(name)
        return root, root
    if Path(name).expanduser().is_dir():
        root = Path(name).expanduser().resolve()
        return root, root
    if name.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(f"model {name!r} is not a directory on this machine ({platform.node()})")
    return _fetch_from_hub(name, revision)


def check_links(name: str, root: Path, boundary: Path) -> None:
    """Refuse a link that leaves `boundary`: it could make the job read any file of this machine."""
    boundary = boundary.resolve()
    for path in _walk(root):
        if path.is_symlink() and not path.resolve().is_relative_to(boundary):
            raise UnsafeModelError(
                f"model {name!r}: {path.relative_to(root)} is a link out of the model's directory; "
                "copy the file in its place"
            )


def check_no_code(name: str, root: Path) -> None:
    """Refuse a model that asks to run code of its own, or that is an adapter for another model."""
    for path in _walk(root):
        if path.name == "adapter_config.json":
            raise UnsafeModelError(f"model {name!r} is an adapter for another model; merge it and save the whole model")
        if path.suffix == ".json" and "config" in path.name and _has_key(_load_json(path), "auto_map"):
            raise UnsafeModelError(
                f"model {name!r}: {path.relative_to(root)} has `auto_map`, it asks to run Python code that comes with "
                "the model; gristmill never does. Use a model whose architecture is part of transformers"
            )


def check_named_files(name: str, root: Path, transformer: Path) -> None:
    """Refuse a tokenizer that is made of files which its settings name outside of the model's directory.

    Where there is a tokenizer.json, nothing else is read.
    """
    for folder in {root, transformer}:
        config = folder / "tokenizer_config.json"
        if not config.is_file() or (folder / "tokenizer.json").is_file():
            continue
        told = _load_json(config)
        for key, value in told.items() if isinstance(told, dict) else ():
            named = isinstance(value, str) and key.endswith("_file") and key not in _FILES_NOT_READ
            # links have been checked
            if named and not Path(os.path.normpath(folder / value)).is_relative_to(root):
                raise UnsafeModelError(
                    f"model {name!r}: {config.relative_to(root)} names {value!r} as its {key}, outside of the model's "
                    "directory; copy the file there, and name it alone"
                )


def check_weights(name: str, folder: Path) -> None:
    """Refuse a model without safetensors, and an index of shards that points elsewhere."""
    suffixes = {path.suffix for path in folder.iterdir()}
    if ".safetensors" not in suffixes:
        if suffixes & _PICKLED:
            raise UnsafeModelError(
                f"model {name!r} has pickled weights alone, and loading a pickle can run code; "
                "convert it once with `model.save_pretrained(DIR)`, which writes safetensors"
            )
        raise ModelError(f"model {name!r} has no weights (*.safetensors) in {folder}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _load_object(index).get("weight_map", {})
        for shard in set(shards.values()) if isinstance(shards, dict) else [shards]:
            if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
                raise UnsafeModelError(f"model {name!r}: {index.name} names {shard!r}, which is not a file beside it")


def _find_in_package(name: str) -> Path:
    package, _, subdir = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-")
        raise ModelError(f"model {name!r}: the package {package!r} is not installed; try `pip install {pip_name}`")
    home = Path(next(iter(spec.submodule_search_locations))).resolve()
    root = (home / subdir).resolve()
    if not root.is_relative_to(home) or not root.is_dir():
        raise ModelError(f"model {name!r}: the package {package!r} has no directory {subdir!r}")
    return root


def _fetch_from_hub(name: str, revision: str | None) -> tuple[Path, Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [f"*{suffix}" for suffix in sorted(_KEPT)]
        root = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {name!r} is not a directory here, not in the hub's cache, and the hub cannot be reached; "
            "give a directory, or fetch it where there is a network with "
            f"`hf download {name}{f' --revision {revision}' if revision else ''}`"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(f"model {name!r} cannot be fetched from the hub: {first_line(error)}") from error
    if revision is None:
        print(f"gristmill: model {name!r} has no revision; this run takes {root.name}", file=sys.stderr)
    return root, root.parents[1]  # .../models--org--name holds snapshots/COMMIT and the blobs that it links to


def _read_modules(name: str, root: Path) -> list[tuple[str, Path]]:
    """What texts go through, the transformer or the table of a static model first."""
    if (root / "modules.json").is_file():
        return read_modules(name, root, _load_json(root / "modules.json"))
    config = _load_object(root / "config.json") if (root / "config.json").is_file() else {}
    if config.get("model_type") == "model2vec":
        return [(STATIC, root), *([("Normalize", root / "1_Normalize")] if config.get("normalize") else [])]
    return [(TRANSFORMER, root)]


def _walk(root: Path) -> Iterator[Path]:
    """Every file and directory below root, links named but not followed."""
    for folder, dirs, files in os.walk(root, followlinks=False):
        yield from (Path(folder, entry) for entry in (*dirs, *files))


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(v, key) for v in value.values())
    return isinstance(value, list) and any(_has_key(v, key) for v in value)


def _load_object(path: Path) -> dict[str, Any]:
    found = _load_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} is JSON, but not an object")
    return found


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
