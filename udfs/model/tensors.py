"""Names and shapes of the tensors in a safetensors file, read from its header alone."""

from __future__ import annotations

import json
from pathlib import Path

from udfs.errors import ModelError

_LONGEST = 100_000_000  # bytes of a header; the format allows no more


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor.

    Raises:
        ModelError: It is no safetensors file.

    Source: safetensors, its format: a length of 8 bytes, then so many of JSON.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return {name: tuple(told["shape"]) for name, told in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
