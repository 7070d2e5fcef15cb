"""Answers that match a JSON schema, by llguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from udfs.errors import SpecError
from udfs.text.schema_parts import hold_schema

if TYPE_CHECKING:
    from torch import Tensor


class Matcher:
    """Where one answer stands in the grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def is_over(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())

    def error(self) -> str:
        """Why nothing may follow any more; empty where all is well."""
        return str(self._matcher.get_error())

    def fill(self, bits: Any, row: int) -> None:
        """Mark the tokens that may come next."""
        import llguidance.torch

        llguidance.torch.fill_next_token_bitmask(self._matcher, bits, row)


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


def _unpack(bits: Tensor, vocabulary: int) -> Tensor:
    """(B, W) int32 bit masks to (B, V) bool; tokens beyond the tokenizer's are not allowed."""
    import torch

    allowed = ((bits[:, :, None] >> torch.arange(32)) & 1).bool().flatten(1)[:, :vocabulary]
    return torch.nn.functional.pad(allowed, (0, vocabulary - allowed.shape[1]), value=False)
