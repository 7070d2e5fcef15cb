"""What a model wrote for one item, as it comes back from the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STOP, LENGTH, BROKEN, EMPTY = 0, 1, 2, 3
FINISH_REASONS = ("stop", "length", "length", "empty")


@dataclass(frozen=True)
class Written:
    """An item's answer.

    Args:
        ids: (n,) int32, the tokens that were generated, without the token that ended them.
        finish: Place in `FINISH_REASONS`: the model or a stop string ended it, or `max_new_tokens` did. Or `BROKEN`:
            the model's logits were not numbers. A worker tells `EMPTY` where a stop string left nothing of it.
        cached_tokens: Tokens of the item that had been computed for another one that begins alike.
    """

    ids: np.ndarray
    finish: int = STOP
    cached_tokens: int = 0
