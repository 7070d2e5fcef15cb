"""The next token of each sequence: from logits to a token, and whether the answer ends with it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.choices import Choices, Place
from udfs.generation.grammar import Grammar, Matcher
from udfs.tasks.writing_options import WritingOptions
from udfs.wire.written import BROKEN, LENGTH, STOP, Written

if TYPE_CHECKING:
    from torch import Tensor

_TAIL_TOKENS = 8
_TAIL_OF_PROMPT = 8  # tokens that may hold a mark of thoughts
_TOKENS_A_CHARACTER = 4  # at most: one for each of its bytes


@dataclass(eq=False)
class Sequence:
    """One item, as it is being written.

    Args:
        owner: Whoever is to be told of its end.
        prompt: (P,) int32 tokens.
        matcher: Holds it to a schema or choices.
        thinks: It writes thoughts, which nothing binds; None while it may begin to.
        draws: Random numbers that belong to its prompt and the seed alone.
        ids: What has been written.
        cached_tokens: Of the prompt, those that were copied from another sequence.
        finish: How it ended; None while it goes on.
        error: What went wrong with it alone, so that it has no answer.
    """

    owner: Any
    prompt: np.ndarray
    matcher: Matcher | Place | None = None
    thinks: bool | None = False
    draws: np.random.Generator | None = None
    ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    finish: int | None = None
    error: Exception | None = None

    def written(self) -> Written:
        return Written(np.array(self.ids, dtype=np.int32), self.finish or STOP, self.cached_tokens)


class Picker:
    """Greedy or drawn, within a grammar, until an end token, a stop string or the longest answer.

    Args:
        options: How tokens are picked.
        ends: Token ids that end an answer.
        tokenizer: transformers' own; needed for stop strings and schemas.
        penalty: The model's own repetition penalty; 1 for none.
        choices: Token ids of what an answer has to be one of.
        marks: Tokens that begin and end thoughts, which no schema and no choices bind; None binds all that is written.
    """

    def __init__(
        self,
        options: WritingOptions,
        *,
        ends: frozenset[int],
        tokenizer: Any,
        penalty: float = 1.0,
        choices: Collection[list[int]] = (),
        marks: tuple[int, int] | None = None,
    ) -> None:
        self._options, self._ends, self._tokenizer, self._penalty = options, ends, tokenizer, penalty
        self._tail = _TAIL_TOKENS + _TOKENS_A_CHARACTER * max(map(len, options.stop), default=0)
        self._marks = marks
        self._grammar: Any = Choices(choices, ends) if choices else None
        if schema := options.form.json_schema:
            self._grammar = Grammar(schema, tokenizer, ends)

    def begin(self, owner: Any, prompt: np.ndarray) -> Sequence:
        """A sequence of which nothing is written yet."""
        draws = None
        if self._options.temperature:
            draws = np.random.default_rng(_digest(prompt, self._options.seed))
        matcher = self._grammar.begin() if self._grammar else None
        return Sequence(owner, prompt, matcher, self._may_think(prompt), draws)

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Write one more token of each sequence.

        Args:
            logits: (B, V) in the order of the sequences.
            sequences: Each is told its token, and whether it ends.
        """
        logits = logits.float()
        broken = logits.isnan().any(-1)
        if self._penalty != 1.0:
            logits = self._penalize(logits, sequences)
        if self._grammar:
            logits = self._hold(logits, sequences)
        picked = self._draw(logits, sequences) if self._options.temperature else logits.argmax(-1)
        for sequence, token, bad in zip(sequences, picked.tolist(), broken.tolist(), strict=True):
            if bad:
                sequence.finish = BROKEN
            else:
                self._append(sequence, token)

    def cut(self, ids: list[int]) -> Written:
        """An answer that was written elsewhere, up to its end token."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        finish = LENGTH if end is None else STOP
        return Written(np.array(ids[:end], dtype=np.int32), finish)

    def _hold(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Logits within the grammar; a thought has no end but its mark."""
        held = self._grammar.mask(logits, [s.matcher for s in sequences])
        for row, sequence in enumerate(sequences):
            if self._marks and sequence.thinks is None:
                held[row, self._marks[0]] = logits[row, self._marks[0]]
            elif sequence.thinks:
                held[row] = logits[row]
                held[row, list(self._ends)] = float("-inf")
        return held

    def _may_think(self, prompt: np.ndarray) -> bool | None:
        """False where nothing is bound or the prompt ends thoughts, True where it begins some."""
        tail = prompt[-_TAIL_OF_PROMPT:].tolist()
        if not self._marks or self._marks[1] in tail:
            return False
        return True if self._marks[0] in tail else None

    def _is_thought(self, sequence: Sequence, token: int) -> bool:
        """Whether a token is one of the thoughts, marks included."""
        if not self._marks or sequence.thinks is False:
            return False
        was, (opening, closing) = sequence.thinks, self._marks
        sequence.thinks = token != closing if was else token == opening
        return bool(was or sequence.thinks)

    def _append(self, sequence: Sequence, token: int) -> None:
        if not self._is_thought(sequence, token) and sequence.matcher is not None:
            sequence.matcher.accept(token)
        if token in self._ends:
            sequence.finish = STOP
            return
        sequence.ids.append(token)
        if (sequence.matcher is not None and sequence.matcher.is_over()) or self._stops(sequence):
            sequence.finish = STOP
        elif len(sequence.ids) >= self._options.max_new_tokens:
            sequence.finish = LENGTH

    def _stops(self, sequence: Sequence) -> bool:
        if not self._options.stop:
            return False
        tail = self._tokenizer.decode(sequence.ids[-self._tail :], skip_special_tokens=True)
        return any(stop in tail for stop in self._options.stop)

    def _draw(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """One token each, by a number of its sequence's own.

        Source: transformers, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, in that order.
        """
        import torch

        ordered, tokens = (logits / self._options.temperature).sort(-1, descending=True)
        if self._options.top_k:
            ordered[:, self._options.top_k :] = -torch.inf
        shares = ordered.softmax(-1)
        if self._options.top_p < 1.0:
            shares[(shares.cumsum(-1) - shares) >= self._options.top_p] = 0.0
        sums = shares.cumsum(-1)
        drawn = torch.tensor([s.draws.random() if s.draws else 0.0 for s in sequences], device=sums.device)
        places = torch.searchsorted(sums, (drawn[:, None] * sums[:, -1:]).to(sums.dtype), right=True)
        last = (shares > 0).sum(-1, keepdim=True) - 1
        return tokens.gather(1, torch.minimum(places, last))[:, 0]

    def _penalize(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Source: transformers, `RepetitionPenaltyLogitsProcessor`."""
        import torch

        logits = logits.clone()
        for row, sequence in zip(logits, sequences, strict=True):
            seen = np.unique(np.concatenate([sequence.prompt, np.array(sequence.ids, dtype=np.int32)]))
            where = torch.from_numpy(seen.astype(np.int64)).to(row.device)
            scores = row[where]
            row[where] = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return logits


def prompt_seed(prompt: np.ndarray, seed: int) -> int:
    """A seed of 63 bits that belongs to a prompt and the job's seed alone."""
    return _digest(prompt, seed) >> 65


def _digest(prompt: np.ndarray, seed: int) -> int:
    """128 bits."""
    key = hashlib.blake2b(prompt.astype(np.int32).tobytes(), key=str(seed).encode()[:64])
    return int.from_bytes(key.digest()[:16], "little")
