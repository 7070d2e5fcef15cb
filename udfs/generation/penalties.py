"""What makes tokens more or less likely before one is picked: the model's own penalty, and what items ask for.

A step changes the logits of all its rows at once, at places that are listed as numbers into the flat logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from udfs.generation.sending import send
from udfs.generation.sequences import RECENT, Sequence

if TYPE_CHECKING:
    from torch import Tensor


def list_seen(
    sequences: list[Sequence], told: np.ndarray, *, size: int, drafts: list[list[int]] | None = None
) -> np.ndarray:
    """Where in flat logits the tokens are that a text has: its prompt's and those that are written.

    Args:
        sequences: B of them.
        told: (B,) `PICKED` of each, which has its last tokens.
        size: Of the vocabulary.
        drafts: Of each sequence, the tokens that were run after its last, each with a row of its own; None for none.

    Returns:
        (N,) int64; a place may be there more than once.
    """
    which = np.arange(len(sequences))
    if drafts:
        which = np.repeat(which, [len(drafted) + 1 for drafted in drafts])
    seen = [sequences[place].seen() for place in which.tolist()]
    fresh = np.arange(RECENT) < told["fresh"][which, None]
    rows = [np.repeat(np.arange(len(which)), [*map(len, seen)]), np.nonzero(fresh)[0]]
    tokens = [*seen, told["recent"][which][fresh]]
    if drafts:
        rows, tokens = [*rows, *_rows_of(drafts)], [*tokens, *_drafted_before(drafts)]
    all_rows, all_tokens = np.concatenate(rows), np.concatenate(tokens).astype(np.int64)
    written = all_tokens < size  # a prompt may have tokens that no model writes
    return all_rows[written] * size + all_tokens[written]


def _rows_of(drafts: list[list[int]]) -> list[np.ndarray]:
    begins = np.cumsum([0, *(len(drafted) + 1 for drafted in drafts)])
    return [
        np.repeat(np.arange(len(drafted)) + begin + 1, np.arange(len(drafted)) + 1)
        for drafted, begin in zip(drafts, begins.tolist(), strict=False)
        if drafted
    ]


def _drafted_before(drafts: list[list[int]]) -> list[np.ndarray]:
    """The drafted tokens that are before each row: the first, the first two, …"""
    return [np.array(drafted[:count]) for drafted in drafts for count in range(1, len(drafted) + 1)]


def penalize(logits: Tensor, seen: np.ndarray, penalty: float, *, also: Tensor | None = None) -> None:
    """Make tokens that a text has less likely, in place.

    Args:
        logits: (R, V) float32, contiguous.
        seen: (N,) int64, as `list_seen` has it.
        penalty: A model's own; above 1 they become less likely.
        also: (R,) int64 on the device, one more token of each row; None for none.

    Source: transformers, `RepetitionPenaltyLogitsProcessor`.
    """
    import torch

    flat, places = logits.view(-1), send(seen, logits)
    if also is not None:
        places = torch.cat([places, torch.arange(len(logits), device=logits.device) * logits.shape[-1] + also])
    scores = flat.gather(0, places)
    flat.scatter_(0, places, torch.where(scores < 0, scores * penalty, scores / penalty))


def follow_wishes(logits: Tensor, sequences: list[Sequence], ends: np.ndarray) -> None:
    """Change logits, in place, by items' own biases, penalties and least lengths.

    Args:
        logits: (B, V) float32, contiguous.
        sequences: Of each row.
        ends: (E,) int64 tokens that end an answer.

    Source: the formula of OpenAI's reference of presence and frequency penalties.
    """
    size, flat = logits.shape[-1], logits.view(-1)
    options = [sequence.way.options for sequence in sequences]
    biased = [row for row, asked in enumerate(options) if asked.logit_bias]
    if biased:
        parts = [sequences[row].way.bias for row in biased]
        rows = np.repeat(biased, [len(ids) for ids, _ in parts])
        ids, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        is_written = ids < size
        flat.index_add_(0, send((rows * size + ids)[is_written], logits), send(values[is_written], logits))
    penalized = [
        row
        for row, asked in enumerate(options)
        if sequences[row].ids and (asked.presence_penalty or asked.frequency_penalty)
    ]
    if penalized:
        rows = np.repeat(penalized, [len(sequences[row].ids) for row in penalized])
        places = rows * size + np.concatenate([sequences[row].ids for row in penalized])
        places, counts = np.unique(places, return_counts=True)
        asked_of = places // size
        presence, frequency = (
            np.array([getattr(asked, name) for asked in options], dtype=np.float32)[asked_of]
            for name in ("presence_penalty", "frequency_penalty")
        )
        taken = presence + frequency * counts.astype(np.float32)
        flat.index_add_(0, send(places, logits), send(-taken, logits))
    short = [
        row
        for row, asked in enumerate(options)
        if sequences[row].matcher is None and len(sequences[row].ids) < asked.min_tokens
    ]
    if short and len(ends):
        places = np.add.outer(np.array(short) * size, ends[ends < size]).ravel()
        flat.index_fill_(0, send(places, logits), float("-inf"))
