"""Whether an architecture of transformers takes texts, by its source, without importing it: that would bring torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from udfs.errors import ModelError
from udfs.model.files import ModelFiles

_TEXT = "input_ids"


def check_takes_text(files: ModelFiles) -> None:
    """Refuse a model of images or sounds alone.

    What is not known, since the source is not where it was, is not refused.

    Raises:
        ModelError: Its class in transformers takes no token ids.
    """
    for name in files.config.get("architectures") or ():
        taken = inputs_of(str(files.config.get("model_type")), name)
        if taken and _TEXT not in taken:
            raise ModelError(
                f"model {files.name!r} is a {name}, which takes {', '.join(taken[:2])} and no texts; take another model"
            )


def inputs_of(model_type: str, name: str) -> list[str]:
    """What a class's `forward` takes; empty where that is not found, or left open."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return []
    part = model_type.replace("-", "_")
    source = Path(next(iter(spec.submodule_search_locations)), "models", part, f"modeling_{part}.py")
    if not source.is_file():
        return []
    classes = {
        node.name: node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }
    for found in _with_bases(classes, name):
        for node in found.body:
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                told = node.args
                is_open = told.vararg is not None or not told.args[1:]
                return [] if is_open else [argument.arg for argument in (*told.args[1:], *told.kwonlyargs)]
    return []


def _with_bases(classes: dict[str, ast.ClassDef], name: str) -> Iterator[ast.ClassDef]:
    """A class, and those of its file that it is made of, in the order in which Python asks them."""
    if name in classes:
        yield classes[name]
        for base in classes[name].bases:
            if isinstance(base, ast.Name):
                yield from _with_bases(classes, base.id)
