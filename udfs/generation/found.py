"""The likeliest tokens of a step, which a device knows before its host does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from udfs.generation.drawing import find_best
from udfs.generation.sending import send

if TYPE_CHECKING:
    from torch import Tensor


class Found:
    """What logits say at once; a GPU has only been told to look, and to bring the answer.

    Args:
        logits: (R, V), as the model has them.
        penalized: (R, V), as tokens are picked by them; None where that is the same.

    Attributes:
        tokens: (R,) int64, the likeliest, on the device.
    """

    def __init__(self, logits: Tensor, penalized: Tensor | None = None) -> None:
        import torch

        self.logits, self.penalized = logits, logits if penalized is None else penalized
        self.tokens, broken = find_best(self.penalized)
        self._brought = torch.stack([self.tokens, broken.to(self.tokens.dtype)])
        self._event = None
        if logits.is_cuda:
            there = self._brought
            self._brought = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._brought.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def tokens_of(self, rows: np.ndarray) -> Tensor:
        """(B,) int64 of some rows, on the device, which is not waited for."""
        return self.tokens.index_select(0, send(rows, self.tokens))

    def wait(self) -> None:
        """Until the device has come so far; what it is told after this holds nobody up."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,) int64, the likeliest tokens; (R,) bool, logits that are no numbers. Waits."""
        self.wait()
        tokens, broken = self._brought.numpy()
        return tokens, broken != 0
