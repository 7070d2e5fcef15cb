"""How much of a device's memory the cache has: by what is free as it is made, and made anew as that changes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from udfs.executor import available_memory
from udfs.generation.cache import Arena
from udfs.model.memory import free_memory, is_out_of_memory, name_gpu
from udfs.wire.turns import take_turn

_CPU_SHARE, _CUDA_SHARE = 0.4, 0.7  # of what is free, for keys and values
_TURN_S = 30.0  # for an engine that loads; shorter than a step may take
_REST_S, _LONGEST_REST_S = 60.0, 1800.0  # before a cache that has given way is looked at, whether it may grow
_WORTH = 1.25  # a cache that is to be made anew for its size alone has to become so much larger


@dataclass
class Room:
    """The memory of one decoder's cache.

    Args:
        arena: The cache; all of its layers are known.
        wanted: More tokens are of no use to it.
        device: torch's name.
        lanes: Decoders that share the device.
    """

    arena: Arena
    wanted: int
    device: str
    lanes: int = 1
    _rest_s: float = field(init=False, repr=False)
    _looks_at: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rest_s = _REST_S
        self._looks_at = time.monotonic() + self._rest_s

    def fill(self, *, at_most: int | None = None) -> None:
        """Make the cache, as large as memory allows; it may come out with no room at all."""
        self.arena.resize(0)
        free_memory()
        tokens = min(self._tokens(), self.wanted if at_most is None else at_most)
        while tokens:
            try:
                self.arena.resize(tokens)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                free_memory(error)
            tokens //= 2

    def renew(self, *, at_most: int | None = None) -> None:
        """Make it anew; engines that load onto the device have their turn first."""
        self.arena.resize(0)
        free_memory()
        with take_turn(name_gpu() if self.device.startswith("cuda") else None, wait_s=_TURN_S):
            self.fill(at_most=at_most)

    def give_way(self, *, at_most: int) -> None:
        """Memory has run out: make it anew and smaller; each time it is longer until it may grow."""
        self.renew(at_most=at_most)
        self._looks_at = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)

    def may_grow(self) -> bool:
        """The cache would be clearly larger if it were made anew; looks only now and then."""
        held = self.arena.tokens
        if held >= self.wanted or time.monotonic() < self._looks_at:
            return False
        self._looks_at = time.monotonic() + self._rest_s
        return self._tokens(held=held) >= _WORTH * held

    def _tokens(self, *, held: int = 0) -> int:
        """How many have room now, if so many were given back: on a CPU what was never written is free as it is."""
        import torch

        size = max(1, self.arena.token_bytes)
        if self.device.startswith("cuda"):
            free = _CUDA_SHARE * (torch.cuda.mem_get_info()[0] / self.lanes + held * size)
        else:
            free = _CPU_SHARE * available_memory() / self.lanes
        return min(self.wanted, int(free / size))
