"""Keys and values of the sequences that are being written: one arena, slabs of slots in it.

A slot holds one sequence, `capacity` tokens one after the other. Some slots of one capacity lie side by side in a slab,
so that attention takes a slab's slots at once, as a view, without copying them; and slabs come and go with the lengths
that there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SLAB_SLOTS = 8
_SLAB_TOKENS = 4096  # of long sequences a slab holds fewer
_STEP = 64  # capacities are multiples of it


@dataclass(eq=False)
class Slab:
    """Slots of one capacity, side by side.

    Args:
        start: Where the first begins, in tokens of the arena.
        capacity: Tokens of a slot.
        taken: (slots,) bool.
        left: So many are not.
    """

    start: int
    capacity: int
    taken: np.ndarray
    left: int

    @property
    def tokens(self) -> int:
        return self.capacity * len(self.taken)


@dataclass(frozen=True)
class Slot:
    """A place for one sequence, whose first token goes to `start` of the arena."""

    slab: Slab
    index: int
    start: int


@dataclass
class Arena:
    """Room for `tokens` tokens, in slots.

    Args:
        tokens: Of all slots together.
        kinds: (0, heads, D) of each layer, as its keys and values are; those of others are known once they are used.
        keys, values: (tokens + 1, heads, D) of each layer, the last for what belongs to no sequence; made by `resize`,
            or when it is first used. On a CPU the machine gives memory only for what has been written.
        slab_slots: Slots of a slab. Products take them at once; a kernel that does not want them has less room unused.
        used: Tokens of the slots that are taken.
    """

    tokens: int
    kinds: dict[int, Tensor] = field(default_factory=dict, repr=False)
    keys: dict[int, Tensor] = field(default_factory=dict, repr=False)
    values: dict[int, Tensor] = field(default_factory=dict, repr=False)
    slab_slots: int = SLAB_SLOTS
    used: int = 0
    _slabs: list[Slab] = field(default_factory=list, repr=False)

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, for states of (…, T, heads, D) like these."""
        if number not in self.keys:
            shape = (self.tokens + 1, *like.shape[-2:])
            self.kinds.setdefault(number, like.new_empty((0, *like.shape[-2:])))
            self.keys[number], self.values[number] = _zeros(shape, like), _zeros(shape, like)
        return self.keys[number], self.values[number]

    @property
    def token_bytes(self) -> int:
        """Memory of a token in all layers."""
        return sum(2 * kind.shape[1] * kind.shape[2] * kind.element_size() for kind in self.kinds.values())

    def resize(self, tokens: int) -> None:
        """Have room for so many tokens from now on, in memory that is taken at once; no sequence is in it.

        Whatever it raises where memory is out, it then has no room at all.
        """
        import torch

        self.tokens = self.used = 0
        for part in (self._slabs, self.keys, self.values):
            part.clear()
        if not tokens:
            return
        self.tokens = tokens
        try:
            with torch.inference_mode():
                for number, like in list(self.kinds.items()):
                    self.layer(number, like)
        except Exception:
            self.resize(0)
            raise

    def fits(self, tokens: int) -> bool:
        """A sequence of so many tokens has room if there is no other."""
        return capacity_of(tokens) <= self.tokens

    def take(self, tokens: int) -> Slot | None:
        """A slot for a sequence of so many tokens; None while there is no room."""
        capacity = capacity_of(tokens)
        slab = next((s for s in self._slabs if s.left and s.capacity == capacity), None)
        slab = slab or self._add_slab(capacity)
        if slab is None:
            return None
        index = int(np.argmin(slab.taken))
        slab.taken[index] = True
        slab.left -= 1
        self.used += capacity
        return Slot(slab, index, slab.start + index * slab.capacity)

    def give_back(self, slot: Slot, *, wipe: int = 0) -> None:
        """A sequence is over.

        Args:
            slot: Its place.
            wipe: So many of its tokens may be infinite or no numbers, which even a mask lets through.
        """
        self.wipe(slot, 0, wipe)
        slab = slot.slab
        slab.taken[slot.index] = False
        slab.left += 1
        self.used -= slab.capacity
        if slab.left == len(slab.taken):
            self._slabs.remove(slab)

    def wipe(self, slot: Slot, first: int, last: int) -> None:
        """Zero some tokens of a slot, from `first` on and before `last`, as far as it reaches."""
        last = min(last, slot.slab.capacity)
        if first < last:
            for states in (*self.keys.values(), *self.values.values()):
                states[slot.start + first : slot.start + last] = 0

    def copy(self, source: Slot, target: Slot, tokens: int) -> None:
        """The first tokens of one slot into another."""
        for states in (*self.keys.values(), *self.values.values()):
            states[target.start : target.start + tokens] = states[source.start : source.start + tokens]

    def _add_slab(self, capacity: int) -> Slab | None:
        wanted = min(self.slab_slots, max(1, _SLAB_TOKENS // capacity))
        start, room = self._largest_gap()
        slots = min(wanted, room // capacity)
        if not slots:
            return None
        slab = Slab(start, capacity, np.zeros(slots, dtype=bool), slots)
        self._slabs.append(slab)
        self._slabs.sort(key=lambda s: s.start)
        return slab

    def _largest_gap(self) -> tuple[int, int]:
        """Where the largest free stretch begins, and its tokens."""
        edges = [0, *(edge for slab in self._slabs for edge in (slab.start, slab.start + slab.tokens)), self.tokens]
        return max(((a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True)), key=lambda gap: gap[1])


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros; on a CPU by calloc, which takes no memory before it is written to, where torch would fill them all."""
    import torch

    if like.device.type != "cpu":
        return like.new_zeros(shape)
    bytes_ = np.zeros(int(np.prod(shape)) * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(bytes_).view(like.dtype).view(shape)


def capacity_of(tokens: int) -> int:
    """Tokens of a slot for a sequence of so many."""
    return -(-tokens // _STEP) * _STEP
