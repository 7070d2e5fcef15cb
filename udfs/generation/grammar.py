"""Answers that have to match: a JSON schema or one of some choices, by llguidance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from udfs.errors import SpecError
from udfs.tasks.writing_options import Form

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

    def fill(self, bits: Any, row: int) -> None:
        """Mark the tokens that may come next."""
        import llguidance.torch

        llguidance.torch.fill_next_token_bitmask(self._matcher, bits, row)


class Grammar:
    """What answers have to match.

    Args:
        form: Has a schema or choices.
        tokenizer: transformers' own.
        ends: Token ids that end an answer.
    """

    def __init__(self, form: Form, tokenizer: Any, ends: frozenset[int]) -> None:
        import llguidance.hf

        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=sorted(ends) or None)
        self._grammar = make_grammar(form)
        problem = check_grammar(self._grammar)
        if problem:
            raise SpecError(f"the answer's grammar cannot be used: {problem}")

    def begin(self) -> Matcher:
        """Of an answer that has not begun."""
        import llguidance

        return Matcher(llguidance.LLMatcher(self._tokenizer, self._grammar))

    def mask(self, logits: Tensor, matchers: list[Matcher | None]) -> Tensor:
        """(B, V) logits with -inf where the grammar lets no token through."""
        import llguidance.torch

        bits = llguidance.torch.allocate_token_bitmask(len(matchers), self._tokenizer.vocab_size)
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                matcher.fill(bits, row)
        allowed = _unpack(bits, logits.shape[-1])
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))


def make_grammar(form: Form) -> str:
    """llguidance's grammar for a schema or choices."""
    import llguidance

    if form.json_schema:
        return llguidance.LLMatcher.grammar_from_json_schema(form.json_schema, {"whitespace_flexible": False})
    return llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in form.choices))


def check_grammar(grammar: str) -> str:
    """What is wrong with a grammar; empty where nothing is."""
    import llguidance

    return str(llguidance.LLMatcher.validate_grammar(grammar))


def _unpack(bits: Tensor, vocabulary: int) -> Tensor:
    """(B, W) int32 bit masks to (B, V) bool; tokens beyond the tokenizer's are not allowed."""
    import torch

    allowed = ((bits[:, :, None] >> torch.arange(32)) & 1).bool().flatten(1)[:, :vocabulary]
    return torch.nn.functional.pad(allowed, (0, vocabulary - allowed.shape[1]), value=False)
