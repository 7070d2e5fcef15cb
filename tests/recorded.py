"""Steps recorded as CUDA graphs, on a machine without CUDA: a plain kernel, and a recorder that calls again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from udfs.generation import attention, graphs
from udfs.generation.graphs import Call

_SIZES = {"_ROWS": 4, "_READ_ROWS": 4, "_READ_TOKENS": 16, "_LEAST_NEW": 2}


def attend_plainly(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    most_q: int,
    most_k: int,
    *,
    scale: float,
    window: int | None,
    causal: bool = False,
    used_k: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the kernel is: causal attention of each sequence by itself, which reads no more of the cache than it has."""
    assert causal
    assert used_k is not None
    assert starts_q.dtype == starts_k.dtype == used_k.dtype == torch.int32
    assert len(starts_q) == len(starts_k) == len(used_k) + 1
    repeats, found = q.shape[1] // k.shape[1], torch.full_like(q, torch.nan)  # of tokens that belong to nobody
    for number, used in enumerate(used_k.tolist()):
        start, stop = starts_q[number : number + 2].tolist()
        begin = int(starts_k[number])
        assert 0 <= stop - start <= most_q
        if start == stop:
            continue
        assert used <= most_k
        one = q[start:stop].transpose(0, 1)
        keys, values = (x[begin : begin + used].transpose(0, 1).repeat_interleave(repeats, 0) for x in (k, v))
        behind = torch.arange(used - len(one[0]), used)[:, None] - torch.arange(used)
        unseen = (behind < 0) | ((behind >= window) if window else False)
        weights = (scale * one @ keys.transpose(1, 2)).masked_fill(unseen, -torch.inf).softmax(-1)
        found[start:stop] = (weights @ values).transpose(0, 1)
    return found


@contextmanager
def plain_kernel() -> Iterator[None]:
    """The kernel of a GPU is there, and is this one; shapes are rounded up by little, as tiny models have few rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in _SIZES.items():
            patch.setattr(graphs, name, size)
        patch.setattr(attention, "goes_by_kernel", lambda *_: True)
        patch.setattr(attention, "attend_by_kernel", attend_plainly)
        yield


class Recorder:
    """Plays again by calling again: what is called reads nothing but fixed tensors."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, call: Call) -> Call:
        self.recorded += 1

        def replay() -> torch.Tensor:
            found = call()
            self.replayed += 1
            return found

        return replay
