"""Values that nobody expects where they are, put into each place of a request in turn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "odd",
    "\ud800",
    "a\x00b",
    [],
    [[]],
    ["odd"],
    {},
    {"odd": 1},
    {"type": ["text"]},
    "[" * 2000,
)


def vary(value: Any) -> Iterator[Any]:
    """A value with each of its places, itself too, held by each odd value, and with an odd key in each object."""
    yield from ODD
    if isinstance(value, dict):
        yield {**value, "odd": 1}
        yield {**value, "\ud800": 1}
    places = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for place in places:
        for other in vary(value[place]):
            made = copy.copy(value)
            made[place] = other
            yield made
