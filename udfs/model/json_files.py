"""The JSON files of a model: they may be broken, or of another shape than the one that is looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udfs.errors import ModelError


def load_object(path: Path) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ModelError: It is something else.
    """
    found = load_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} is JSON, but not an object")
    return found


def load_json(path: Path) -> Any:
    """Whatever JSON a file holds.

    Raises:
        ModelError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
