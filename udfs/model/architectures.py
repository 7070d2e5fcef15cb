"""Which architectures the installed transformers has, without importing it: a worker has no time for that."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from udfs.errors import ModelError, UnsafeModelError

_TABLE = "CONFIG_MAPPING_NAMES"
_FILES = ("auto_mappings.py", "configuration_auto.py")  # of transformers/models/auto; older versions lack the first


def check_architecture(name: str, config: dict[str, object]) -> None:
    """Refuse a model whose architecture is no part of transformers.

    Args:
        name: The model's, as the user gave it.
        config: Its config.json.

    Raises:
        UnsafeModelError: It names Python code of its own, which would have to be run.
        ModelError: It names no architecture, or none that is known.
    """
    kind, known = config.get("model_type"), known_architectures()
    if not known or (isinstance(kind, str) and kind in known):
        return
    told = f"transformers {version('transformers')} has no architecture {kind!r}" if kind else "config.json names none"
    if "auto_map" in config:
        raise UnsafeModelError(
            f"model {name!r}: config.json has `auto_map`, it asks to run Python code that comes with the model, and "
            f"{told}; gristmill never runs it. Use a model whose architecture is part of transformers, such as a "
            "conversion of this one"
        )
    raise ModelError(f"model {name!r}: {told}" + ("; a newer transformers may" if kind else ", no `model_type`"))


@functools.cache
def known_architectures() -> frozenset[str]:
    """Every `model_type` that transformers' AutoConfig knows; empty where its tables are not where they were."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(next(iter(spec.submodule_search_locations)), "models/auto")
    return frozenset(kind for file in _FILES if (folder / file).is_file() for kind in _read_table(folder / file))


def _read_table(path: Path) -> Iterator[str]:
    """The keys of the table in a source file, as it is written there or added to."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if any(isinstance(node, ast.Name) and node.id == _TABLE for node in ast.walk(statement)):
            yield from _keys(statement)


def _keys(statement: ast.stmt) -> Iterator[str]:
    """First strings of pairs, and keys of dicts."""
    for node in ast.walk(statement):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Dict):
            found = list(node.keys)
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
            found = [node.elts[0]]
        yield from (key.value for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str))
