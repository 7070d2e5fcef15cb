"""What a model's modules.json lists: what its texts go through, in order, by the names of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udfs.errors import ModelError, UnsafeModelError

TRANSFORMER, STATIC = "Transformer", "StaticEmbedding"
WITH_WEIGHTS = frozenset({"Dense", "LayerNorm"})  # of those that come after
_OTHERS = {
    "Asym": "which sends queries and documents through different models; save the one that is wanted by itself, as in "
    "`SentenceTransformer(modules=[*model[0].sub_modules['document'], *model[1:]]).save_pretrained(DIR)`",
    "BoW": "which counts words; take a model that begins with a Transformer or a StaticEmbedding",
    "CLIPModel": "which reads images; take a model of texts, that begins with a Transformer or a StaticEmbedding",
    "WordEmbeddings": "which looks up words by a tokenizer of its own; take a model that begins with a Transformer or "
    "a StaticEmbedding",
}
_OTHERS["Router"] = _OTHERS["Asym"]


def read_modules(name: str, root: Path, listed: Any) -> list[tuple[str, Path]]:
    """The modules of a model, as (class name, directory); the first one reads token ids.

    Args:
        name: The model's.
        root: Its directory.
        listed: What its modules.json holds.

    Raises:
        ModelError: It is no such list, or begins with what gristmill does not know.
        UnsafeModelError: A module lies elsewhere, or is code of somebody else's.
    """
    modules = [_read_module(name, root, module) for module in (listed if isinstance(listed, list) else [listed])]
    for kind, _ in modules:
        if kind in _OTHERS:
            raise ModelError(f"model {name!r} {_place(kind, modules)} {kind}, {_OTHERS[kind]}")
    if not modules or modules[0][0] not in (TRANSFORMER, STATIC):
        first = modules[0][0] if modules else "nothing"
        raise ModelError(
            f"model {name!r} begins with {first}; gristmill knows models that begin with a {TRANSFORMER} or a {STATIC}"
        )
    return modules


def _read_module(name: str, root: Path, module: Any) -> tuple[str, Path]:
    if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("path", "type")):
        raise ModelError(f"model {name!r}: modules.json is no list of modules, each with a path and a type")
    if not (root / module["path"]).resolve().is_relative_to(root.resolve()):
        raise UnsafeModelError(f"model {name!r}: modules.json names {module['path']!r}, outside the model's directory")
    if not module["type"].startswith("sentence_transformers."):
        raise UnsafeModelError(f"model {name!r}: modules.json asks to run the code of {module['type']!r}")
    return module["type"].rsplit(".", 1)[-1], root / module["path"]


def _place(kind: str, modules: list[tuple[str, Path]]) -> str:
    return "begins with" if modules[0][0] == kind else "has"
