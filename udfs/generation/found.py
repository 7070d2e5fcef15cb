"""The likeliest tokens of a step, which a device knows before its host does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from udfs.generation.drawing import find_best

if TYPE_CHECKING:
    from torch import Tensor


class Found:
    """What logits say at once; a GPU has only been told to look, and to bring the answer.

    Args:
        logits: (R, V).

    Attributes:
        tokens: (R,) int64, the likeliest, on the device.
    """

    def __init__(self, logits: Tensor) -> None:
        import torch

        self.logits = logits
        self.tokens, broken = find_best(logits)
        self._brought = torch.stack([self.tokens, broken.to(self.tokens.dtype)])
        self._event = None
        if logits.is_cuda:
            there = self._brought
            self._brought = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._brought.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> None:
        """Until the device has come so far; what it is told after this holds nobody up."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,) int64, the likeliest tokens; (R,) bool, logits that are no numbers. Waits."""
        self.wait()
        tokens, broken = self._brought.numpy()
        return tokens, broken != 0
