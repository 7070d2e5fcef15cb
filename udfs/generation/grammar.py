"""Answers that match a JSON schema, by llguidance."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.errors import SpecError
from udfs.text.schema_parts import hold_schema

if TYPE_CHECKING:
    from torch import Tensor


class Matcher:
    """Where one answer stands in the grammar.

    Args:
        matcher: llguidance's.

    Attributes:
        bits: The mask of the tokens that may come next, where it was made ahead.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.bits: Tensor | None = None
        self._forced: list[int] | None = None

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self.bits = self._forced = None

    def allows(self, token: int) -> bool:
        """Whether a token may come next, as a mask has it: of several that spell what is forced, one alone."""
        forced = self.forced(1)
        return token == forced[0] if forced else bool(self._matcher.validate_tokens([token]) == 1)

    def count_allowed(self, tokens: list[int]) -> int:
        """So many of some tokens may come next, one after the other."""
        return int(self._matcher.validate_tokens(tokens))

    def forced(self, most: int) -> list[int]:
        """Tokens that spell what has to come next, at most so many: those that masks let through, one by one."""
        if self._forced is None:
            self._forced = list(self._matcher.compute_ff_tokens())
        return self._forced[:most]

    def is_over(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())

    def error(self) -> str:
        """Why nothing may follow any more; empty where all is well."""
        return str(self._matcher.get_error())

    def fill(self, bits: Any, row: int) -> None:
        """Mark the tokens that may come next."""
        import llguidance.torch

        if self.bits is None:
            llguidance.torch.fill_next_token_bitmask(self._matcher, bits, row)
        else:
            bits[row] = self.bits


class Grammar:
    """What answers have to match.

    Args:
        schema: JSON schema, as text.
        tokenizer: transformers' own.
        ends: Token ids that end an answer.

    Raises:
        SpecError: No answer can be held to the schema.
    """

    def __init__(self, schema: str, tokenizer: Any, ends: frozenset[int]) -> None:
        import llguidance.hf

        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=sorted(ends) or None)
        told = {"whitespace_flexible": False}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(hold_schema(schema).schema, told)
        self._first = llguidance.LLMatcher(self._tokenizer, grammar)  # read once, since that may take a second
        begun = self.begin()
        begun.fill(self._allocate(1), 0)
        if problem := begun.error():
            raise SpecError(f"the answer's grammar cannot be used: {problem.splitlines()[0]}")

    def begin(self) -> Matcher:
        """Of an answer that has not begun."""
        return Matcher(self._first.deep_copy())

    def prepare(self, matchers: list[Matcher]) -> None:
        """Make the masks of some answers ahead, in threads of the library, as while a GPU runs the model."""
        import llguidance.torch

        bits = self._allocate(len(matchers))
        told = [(matcher._matcher, row) for row, matcher in enumerate(matchers)]
        llguidance.torch.fill_next_token_bitmask_par(_executor(), told, bits)
        for matcher, row in zip(matchers, bits, strict=True):
            matcher.bits = row

    def mask(self, logits: Tensor, matchers: list[Matcher]) -> Tensor:
        """(B, V) logits with -inf where the grammar lets no token through."""
        bits = self._allocate(len(matchers))
        for row, matcher in enumerate(matchers):
            matcher.fill(bits, row)
        allowed = _unpack(bits, logits.shape[-1])
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def _allocate(self, rows: int) -> Any:
        import llguidance.torch

        return llguidance.torch.allocate_token_bitmask(rows, self._tokenizer.vocab_size)


@functools.cache
def _executor() -> Any:
    import llguidance

    return llguidance.LLExecutor()


def _unpack(bits: Tensor, vocabulary: int) -> Tensor:
    """(B, W) int32 bit masks to (B, V) bool; tokens beyond the tokenizer's are not allowed."""
    import torch

    allowed = np.unpackbits(bits.numpy().view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(allowed.view(bool))
