"""Real text for benchmarks that is on every machine: the docstrings of the installed packages."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import InputError


def docstrings(rows: int, *, first_line: bool = False, seed: int = 0) -> list[str]:
    """Distinct docstrings in a random order that the seed decides: prose, code and tables of all lengths.

    Args:
        rows: How many.
        first_line: Only their first lines: short texts, about 15 tokens.

    Raises:
        InputError: So many are not installed.
    """
    found: dict[str, None] = {}
    for text in _read_docstrings(seed):
        taken = text.strip().split("\n")[0] if first_line else text.strip()
        if taken:
            found[taken] = None
        if len(found) == rows:
            texts = list(found)
            random.Random(seed).shuffle(texts)
            return texts
    raise InputError(f"the installed packages hold {len(found):,} distinct docstrings, fewer than --rows {rows:,}")


def _read_docstrings(seed: int) -> Iterator[str]:
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    random.Random(seed).shuffle(files)
    for file in files:
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
