"""Which prompt in the cache begins as another one does, by the hashes of its blocks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

import numpy as np

BLOCK = 16  # tokens; to copy fewer than these is not worth the calls

Holder = TypeVar("Holder")


def hash_blocks(tokens: np.ndarray, *, salt: object) -> list[int]:
    """A hash of each whole block of tokens and all that comes before it.

    Args:
        tokens: (P,) int32.
        salt: Told of all; prompts of other salts have nothing in common.
    """
    found, last = list[int](), hash(salt)
    whole = tokens[: len(tokens) // BLOCK * BLOCK].tobytes()
    size = BLOCK * tokens.itemsize
    for place in range(0, len(whole), size):
        last = hash((last, whole[place : place + size]))
        found.append(last)
    return found


class Prefixes(Generic[Holder]):
    """Who holds the keys and values of which blocks.

    It takes time by the length of a prompt, and not by the number of prompts.
    """

    def __init__(self) -> None:
        self._holders: dict[int, dict[Holder, None]] = {}

    def add(self, holder: Holder, hashes: list[int]) -> None:
        """It holds the blocks with these hashes."""
        for each in hashes:
            self._holders.setdefault(each, {})[holder] = None

    def remove(self, holder: Holder, hashes: list[int]) -> None:
        """It holds them no more, if it did."""
        for each in hashes:
            if holders := self._holders.get(each):
                holders.pop(holder, None)
                if not holders:
                    del self._holders[each]

    def find(self, hashes: list[int], among: Collection[Holder] | None = None) -> Holder | None:
        """The one that holds most of the first of these blocks; any of several, or one of some."""
        best = None
        for each in hashes:
            holders = self._holders.get(each)
            if not holders:
                break
            found = next((h for h in holders if h in among), None) if among is not None else next(iter(holders))
            if found is None:
                break
            best = found
        return best
