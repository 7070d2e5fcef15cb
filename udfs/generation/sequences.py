"""A sequence as it is being written, and the way in which it is answered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.tasks.writing_options import WritingOptions
from udfs.wire.written import STOP, Logprobs, Written

if TYPE_CHECKING:
    from udfs.generation.choices import Place
    from udfs.generation.grammar import Matcher

_TAIL_TOKENS = 8
_TOKENS_A_CHARACTER = 4  # at most: one for each of its bytes

# What a picker needs to know of each sequence. last: the token that was written last; left: tokens until the longest
# answer; free: `Way.is_free`; over: it has ended; recent: its last tokens, of which `fresh` are not among its ids yet.
RECENT = 32
PICKED = np.dtype(
    [
        ("last", np.int64),
        ("left", np.int64),
        ("fresh", np.int64),
        ("recent", np.int32, (RECENT,)),
        ("free", np.bool_),
        ("over", np.bool_),
    ]
)


@dataclass(frozen=True, eq=False)
class Way:
    """How an item is answered.

    Args:
        options: The job's, with the item's own laid over them.
        index: Which of its row's answers it is.
        grammar: Holds it to a schema or choices; None for nothing.
        marks: Tokens that begin and end thoughts, which no grammar binds; None binds all that is written.
    """

    options: WritingOptions
    index: int = 0
    grammar: Any = None
    marks: tuple[int, int] | None = None

    @cached_property
    def tail(self) -> int:
        """Tokens that may hold a stop string."""
        return _TAIL_TOKENS + _TOKENS_A_CHARACTER * max(map(len, self.options.stop), default=0)

    @cached_property
    def changes_logits(self) -> bool:
        """By what it says itself, not by the model's own penalty."""
        options = self.options
        return bool(options.presence_penalty or options.frequency_penalty or options.logit_bias or options.min_tokens)

    @cached_property
    def most(self) -> int:
        """Tokens of the longest answer."""
        return self.options.max_new_tokens

    @cached_property
    def is_free(self) -> bool:
        """The likeliest token is taken as it is, and ends the answer by its number alone."""
        return self.is_greedy and self.grammar is None and not self.options.stop

    @cached_property
    def is_greedy(self) -> bool:
        """The likeliest token is taken of those that a grammar lets through, if there is one."""
        options = self.options
        return not (options.temperature or self.changes_logits or options.logprobs)

    @cached_property
    def bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and what is added to their logits."""
        told = self.options.logit_bias or {}
        return np.array([*map(int, told)], dtype=np.int64), np.array([*told.values()], dtype=np.float32)


@dataclass(eq=False)
class Sequence:
    """One item, as it is being written.

    Args:
        owner: Whoever is to be told of its end.
        prompt: (P,) int32 tokens.
        way: How it is answered.
        matcher: Holds it to a schema or choices.
        thinks: It writes thoughts, which nothing binds; None while it may begin to.
        draws: Random numbers that belong to its prompt and the seed alone.
        ids: What has been written.
        cached_tokens: Of the prompt, those that were copied from another sequence.
        finish: How it ended; None while it goes on.
        error: What went wrong with it alone, so that it has no answer.
        refused: That is its options, which nothing can be written by.
    """

    owner: Any
    prompt: np.ndarray
    way: Way
    matcher: Matcher | Place | None = None
    thinks: bool | None = False
    draws: np.random.Generator | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, list[int], list[float]]] = field(default_factory=list)
    cached_tokens: int = 0
    finish: int | None = None
    error: Exception | None = None
    refused: bool = False
    _seen: np.ndarray | None = field(default=None, repr=False)
    _noted: int = field(default=0, repr=False)

    def seen(self) -> np.ndarray:
        """(N,) the tokens of its prompt, each once, and of its ids."""
        if self._seen is None:
            self._seen = np.unique(self.prompt)
        if len(self.ids) > self._noted:
            self._seen = np.append(self._seen, np.array(self.ids[self._noted :], dtype=self._seen.dtype))
            self._noted = len(self.ids)
        return self._seen

    def written(self) -> Written:
        told = self._told() if self.way.options.logprobs else None
        return Written(np.array(self.ids, dtype=np.int32), self.finish or STOP, self.cached_tokens, told)

    def _told(self) -> Logprobs:
        told, width = self.logprobs[: len(self.ids)], self.way.options.top_logprobs
        return Logprobs(
            np.array([value for value, _, _ in told], dtype=np.float32),
            np.array([ids for _, ids, _ in told], dtype=np.int32).reshape(len(told), width),
            np.array([values for _, _, values in told], dtype=np.float32).reshape(len(told), width),
        )


def tell(sequences: list[Sequence]) -> np.ndarray:
    """(B,) `PICKED` of some sequences."""
    told = np.zeros(len(sequences), dtype=PICKED)
    told["free"] = [sequence.way.is_free for sequence in sequences]
    retell(told, list(range(len(sequences))), sequences)
    return told


def retell(told: np.ndarray, places: list[int], sequences: list[Sequence]) -> None:
    """Bring what is told of some of the sequences up to date, whose ids are."""
    for place in places:
        sequence = sequences[place]
        if sequence.ids:
            told["last"][place] = sequence.ids[-1]
        told["left"][place] = sequence.way.most - len(sequence.ids)
        told["over"][place] = sequence.finish is not None


def note_ids(told: np.ndarray, places: list[int], sequences: list[Sequence]) -> None:
    """Bring the ids of some of the sequences up to date.

    To append each token as it comes touches as many objects as there are sequences, all over the memory.
    """
    recent, fresh = told["recent"], told["fresh"]
    for place in places:
        if count := int(fresh[place]):
            sequences[place].ids.extend(recent[place, :count].tolist())
            fresh[place] = 0


def prompt_seed(prompt: np.ndarray, seed: int, index: int = 0) -> int:
    """A seed of 63 bits that belongs to a prompt, the seed that was asked for and the number of the answer alone."""
    return digest(prompt, seed, index) >> 65


def digest(prompt: np.ndarray, seed: int, index: int = 0) -> int:
    """128 bits."""
    key = f"{seed}/{index}" if index else str(seed)
    told = hashlib.blake2b(prompt.astype(np.int32).tobytes(), key=key.encode()[:64])
    return int.from_bytes(told.digest()[:16], "little")
