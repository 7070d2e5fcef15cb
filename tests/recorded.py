"""Steps recorded as CUDA graphs, on a machine without CUDA: a plain kernel, and a recorder that calls again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import varlen

from udfs.generation import attention
from udfs.generation.graphs import Call


def attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """What the kernel is: causal attention of each sequence by itself, which reads no more of the cache than it has."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == seqused_k.dtype == torch.int32
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa == (repeats > 1)
    found, (left, right) = torch.empty_like(query), window_size
    assert right == 0
    for number, used in enumerate(seqused_k.tolist()):
        start, stop = cu_seq_q[number : number + 2].tolist()
        begin = int(cu_seq_k[number])
        assert 1 <= stop - start <= max_q
        assert used <= max_k
        q = query[start:stop].transpose(0, 1)
        k, v = (part[begin : begin + used].transpose(0, 1).repeat_interleave(repeats, 0) for part in (key, value))
        behind = torch.arange(used - len(q[0]), used)[:, None] - torch.arange(used)
        unseen = (behind < 0) | ((behind > left) if left >= 0 else False)
        weights = (scale * q @ k.transpose(1, 2)).masked_fill(unseen, -torch.inf).softmax(-1)
        found[start:stop] = (weights @ v).transpose(0, 1)
    return found


@contextmanager
def plain_kernel() -> Iterator[None]:
    """The kernel of a GPU is there, and is this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "goes_by_kernel", lambda *_: True)
        patch.setattr(varlen, "varlen_attn", attend_plainly)
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
