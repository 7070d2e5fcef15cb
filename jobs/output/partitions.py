"""What readers make of the names of directories, where these hold a column's values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

_ESCAPED = re.compile(r"""[\x00-\x1f\x7f"#%'*/:=?\\{\[\]^]""")  # as Spark does
_NULL = "__HIVE_DEFAULT_PARTITION__"
# What Spark takes for a number, a date or a time; where all values of a column look so, it makes such a column of it.
_GUESSED = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|\d{4}-\d{1,2}-\d{1,2}([ T].*)?|NaN|[+-]?Infinity")


def null_place(columns: Iterable[str]) -> str:
    """The directories of rows in which some columns are null, below those of other columns."""
    return "".join(f"/{_ESCAPED.sub(lambda found: f'%{ord(found[0]):02X}', name)}={_NULL}" for name in columns)


def tell_guessed(paths: Iterable[str], kinds: Mapping[str, Any]) -> list[str]:
    """Warns of strings that readers take for something else.

    Args:
        paths: Files of an increment.
        kinds: Types of the columns that are directories.
    """
    strings = [name for name, kind in kinds.items() if kind == "string"]
    found: dict[str, set[str]] = {name: set() for name in strings}
    for path in paths:
        for part in path.split("/")[:-1]:
            name, _, value = part.partition("=")
            if (told := unquote(name)) in found and value != _NULL:
                found[told].add(unquote(value))
    return [
        f"strings in directories' names are guessed at by readers: Spark makes numbers or dates of {name}, "
        f"unless spark.sql.sources.partitionColumnTypeInference.enabled is false"
        for name, values in found.items()
        if values and all(_GUESSED.fullmatch(value) for value in values)
    ]
