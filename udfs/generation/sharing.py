"""What prompts in the cache have in common is computed once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from udfs.generation.cache import Arena
from udfs.generation.prefixes import BLOCK, Prefixes, hash_blocks
from udfs.generation.running import Active
from udfs.model.positions import Turn


class Sharing:
    """Who holds which blocks of what is read.

    Args:
        arena: Where they are.
        turn: Texts on both sides of it have nothing in common.

    Attributes:
        ready: Blocks that are there.
        coming: Blocks that are being computed, or are about to be.
    """

    def __init__(self, arena: Arena, turn: Turn) -> None:
        self.ready, self.coming = Prefixes[Active](), Prefixes[Active]()
        self._arena, self._turn = arena, turn

    def hash(self, active: Active) -> None:
        """Know its blocks."""
        active.hashes = hash_blocks(active.read, salt=self._turn.is_passed(len(active.read)))

    def forget(self, active: Active) -> None:
        """Nothing of it is there any more."""
        self.ready.remove(active, active.hashes)
        self.coming.remove(active, active.hashes)

    def tell_coming(self, active: Active) -> None:
        """It is going to be read."""
        self.coming.add(active, active.hashes)

    def note_read(self, active: Active, count: int) -> None:
        """So many more of its tokens are there."""
        self.ready.add(active, active.hashes[(active.past - count) // BLOCK : active.past // BLOCK])
        if not active.unread:
            self.coming.remove(active, active.hashes)

    def begin(self, active: Active, reading: Collection[Active]) -> int | None:
        """Take what another has in common with what it reads, as far as it is computed, and alike.

        Args:
            active: Is to begin.
            reading: Sequences whose prompts run in this step.

        Returns:
            Tokens that it has by now. None where it waits, since more of what it needs is just being computed; but it
            waits once alone for one that ends with its first token and leaves nothing behind.
        """
        best = self.ready.find(active.hashes)
        count = 0 if best is None else min(_count_shared(active.read, best.read), best.past)
        if active.awaited is None or active.awaited in reading:
            coming = self.coming.find(active.hashes, reading)
            if coming is not None and _count_shared(active.read, coming.read) - count >= BLOCK:
                active.awaited = coming
                return None
        active.begun, active.awaited = True, None
        copied = 0
        if best is not None and count >= BLOCK:
            self._arena.copy(best.slot, active.slot, count)
            active.past = copied = count
            if not active.sequence.ids:
                active.sequence.cached_tokens = count
            self.note_read(active, count)
        self.tell_coming(active)
        return copied


def _count_shared(prompt: np.ndarray, other: np.ndarray) -> int:
    """Tokens that a prompt begins with as another does; one of them is left to be run."""
    most = min(len(prompt) - 1, len(other))
    if most < BLOCK or prompt[0] != other[0]:
        return 0
    differ = np.flatnonzero(prompt[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
