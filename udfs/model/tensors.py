"""Names, shapes and places of the tensors in a safetensors file, read from its header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udfs.errors import ModelError

_LONGEST = 100_000_000  # bytes of a header; the format allows no more


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor.

    Raises:
        ModelError: It is no safetensors file.
    """
    return {name: tuple(told["shape"]) for name, told in _read_header(path)[0].items()}


def check_whole(path: Path) -> None:
    """Refuse a file that ends before its tensors do, as one that was not fetched to its end.

    Raises:
        ModelError: It does, or is no safetensors file.
    """
    header, begin = _read_header(path)
    wanted = begin + max((told["data_offsets"][1] for told in header.values()), default=0)
    if (size := path.stat().st_size) != wanted:
        raise ModelError(f"{path} has {size:,} bytes, and its header tells of {wanted:,}; fetch it again")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a file tells of each tensor, and where the first one begins.

    Source: safetensors, its format: a length of 8 bytes, then so many of JSON.
    """
    try:
        with path.open("rb") as file:
            if (start := file.read(8)) == b"version ":
                raise ValueError("it is a pointer of Git LFS in the place of the file, which `git lfs pull` fetches")
            if (length := int.from_bytes(start, "little")) > _LONGEST:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        told = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        for tensor in told.values():
            tuple(map(int, [*tensor["shape"], *tensor["data_offsets"]]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    return told, 8 + length
