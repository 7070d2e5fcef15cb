"""How many tokens a micro-batch holds: measured at the start, halved when memory runs out, grown back slowly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from udfs.engine.model import Model
from udfs.model.memory import free_memory, is_out_of_memory

# What is tried. A CPU's caches like small batches, a GPU wants to be filled.
_CPU_TOKENS = (1024, 2048, 4096)
_CUDA_TOKENS = (8192, 16384, 32768, 65536, 131072)
_PROBE_LENGTH = 128
_LONG_PROBE = 512
_PROBE_S = 0.4  # for each size; a large model is tried once
_WORTH = 1.04  # a larger budget has to be so much faster
_MEMORY_SHARE = 0.8  # the rest is for longer items, whose attention costs more a token
_PATIENCE = 32  # full micro-batches before the budget grows


@dataclass
class Budget:
    """The token budget of micro-batches; lanes share it.

    Args:
        max_batch_tokens: Where it starts, and the most that it grows back to.
        min_batch_tokens: Tokens from which a micro-batch rather ends than pads.
        longest_patience: Full micro-batches before it grows, where growth has run out of memory again and again.
        now: What holds now.
    """

    max_batch_tokens: int
    min_batch_tokens: int
    longest_patience: int = field(default=512, repr=False)
    now: int = field(init=False)
    _patience: int = field(default=_PATIENCE, repr=False)
    _full: int = field(default=0, repr=False)
    _grown: bool = field(default=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.now = self.max_batch_tokens

    def start_at(self, tokens: int) -> None:
        """Begin with a smaller budget: with the whole one an engine has died."""
        self.now, self._patience = max(1, min(self.now, tokens)), self.longest_patience

    def shrink(self, tokens: int) -> None:
        """A micro-batch of so many tokens, padding included, ran out of memory."""
        with self._lock:
            smaller = max(1, tokens // 2)
            if smaller < self.now:
                if self._grown:  # too soon
                    self._patience = min(2 * self._patience, self.longest_patience)
                self.now, self._full, self._grown = smaller, 0, False

    def note_success(self, tokens: int) -> None:
        """A micro-batch of so many tokens went through; a full one is a step towards a larger budget."""
        with self._lock:
            self._full += tokens > self.now // 2
            if self.now < self.max_batch_tokens and self._full >= self._patience:
                self.now, self._full = min(self.max_batch_tokens, self.now + -(-self.now // 4)), 0
                self._grown = True


def measure_budget(model: Model, *, lanes: int, threads: int, fixed: int | None) -> Budget:
    """Find the smallest budget that is about as fast as any, and fits into the device's memory.

    Args:
        model: The loaded model; it is warm afterwards.
        lanes: Micro-batches that run at once.
        threads: CPU threads of each.
        fixed: A budget that was asked for; the model is only warmed up then.
    """
    least = 8192 if model.on_cuda else 384
    if fixed:
        choose_size([min(fixed, least)], lambda size: _time_batch(model, size, lanes, threads))
        return Budget(fixed, min(least, fixed))
    sizes: Iterable[int] = _CPU_TOKENS
    if model.on_cuda:
        sizes = _sizes_that_fit(model, lanes)
    best = choose_size(sizes, lambda size: _time_batch(model, size, lanes, threads))
    return Budget(best, min(least, best))


def choose_size(sizes: Iterable[int], seconds: Callable[[int], float]) -> int:
    """The size, of ascending ones, after which tokens a second gain no more, or for which there is no memory.

    Args:
        sizes: What is tried; where not even the first fits, its halves are.
        seconds: Times a batch of a size.
    """
    best, rate = 0, 0.0
    for size in sizes:
        took = _seconds_if_it_fits(seconds, size)
        while took is None and not best and size > 1:
            size //= 2
            took = _seconds_if_it_fits(seconds, size)
        if took is None:
            break
        if best and size / took < _WORTH * rate:
            break
        best, rate = size, size / took
        if took > _PROBE_S:  # larger ones would hold up the start, and such a batch is long enough
            break
    return best


def _seconds_if_it_fits(seconds: Callable[[int], float], size: int) -> float | None:
    try:
        return seconds(size)
    except Exception as error:
        if not is_out_of_memory(error) or size == 1:
            raise
        free_memory(error)
        return None


def _time_batch(model: Model, tokens: int, lanes: int, threads: int) -> float:
    """Seconds that a batch of so many tokens takes while every lane runs one: the best of a few tries."""
    import torch

    items = model.probes.fill(tokens, length=min(_PROBE_LENGTH, tokens))
    took: list[float] = []
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        until = time.perf_counter() + _PROBE_S
        while len(took) < 2 or (len(took) < 5 and time.perf_counter() < until):
            began = time.perf_counter()
            list(pool.map(lambda _: model.run(items, np.arange(len(items))), range(lanes)))
            took.append(time.perf_counter() - began)
            if took[0] > _PROBE_S:
                break
    return min(took) * tokens / len(items.ids)


def _sizes_that_fit(model: Model, lanes: int) -> list[int]:
    """Of the sizes that suit a GPU those whose memory is free, or one smaller size."""
    try:
        room = int(_MEMORY_SHARE * _free_bytes() / (_bytes_per_token(model) * lanes))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        room = 0
    return [size for size in _CUDA_TOKENS if size <= room] or [max(_PROBE_LENGTH, room)]


def _bytes_per_token(model: Model) -> float:
    """Memory that a token costs in items of the longest length (512 at most), by a smaller and a larger batch."""
    import torch

    peaks, tokens = [], []
    for count in (4, 12):
        items = model.probes.of_length(_LONG_PROBE)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _, widths = model.run(items, np.arange(count) % len(items))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        tokens.append(int(widths.sum()))
    return max(1.0, (peaks[1] - peaks[0]) / max(1, tokens[1] - tokens[0]))


def _free_bytes() -> int:
    import torch

    return torch.cuda.mem_get_info()[0]
