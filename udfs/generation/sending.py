"""From the host to a device, which is not waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def send(array: np.ndarray, like: Tensor) -> Tensor:
    """Numbers in the memory that a tensor is in."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor.to(like.device)
