"""What a model wrote for one item, as it comes back from the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STOP, LENGTH, BROKEN, EMPTY = 0, 1, 2, 3
FINISH_REASONS = ("stop", "length", "length", "empty")


@dataclass(frozen=True)
class Logprobs:
    """How likely the tokens of an answer were, by the model's own logits.

    Args:
        values: (n,) float32, natural logarithms.
        top_ids: (n, k) int32, the likeliest tokens of each place, the first the likeliest.
        top_values: (n, k) float32.
    """

    values: np.ndarray
    top_ids: np.ndarray
    top_values: np.ndarray


@dataclass(frozen=True)
class Written:
    """An item's answer.

    Args:
        ids: (n,) int32, the tokens that were generated, without the token that ended them.
        finish: Place in `FINISH_REASONS`: the model or a stop string ended it, or `max_new_tokens` did. Or `BROKEN`:
            the model's logits were not numbers. A worker tells `EMPTY` where a stop string left nothing of it.
        cached_tokens: Tokens of the item that had been computed for another one that begins alike.
        logprobs: Of the tokens, where they were asked for.
    """

    ids: np.ndarray
    finish: int = STOP
    cached_tokens: int = 0
    logprobs: Logprobs | None = None
