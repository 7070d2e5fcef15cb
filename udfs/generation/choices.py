"""Answers that are one of some choices: a trie of their tokens, whose cost does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class _Node:
    """What may follow some tokens: the choices that begin with them, parted by the next one when somebody comes here.

    Args:
        choices: Token ids of each, which share the first `depth`.
        ends: Token ids that end an answer.
    """

    def __init__(self, choices: list[tuple[int, ...]], depth: int, ends: tuple[int, ...]) -> None:
        self._choices, self._depth, self._ends = choices, depth, ends

    @cached_property
    def after(self) -> dict[int, _Node]:
        parted: dict[int, list[tuple[int, ...]]] = {}
        for choice in self._choices:
            if len(choice) > self._depth:
                parted.setdefault(choice[self._depth], []).append(choice)
        return {token: _Node(choices, self._depth + 1, self._ends) for token, choices in parted.items()}

    @cached_property
    def tokens(self) -> dict[int, None]:
        """Those that may come next, in their order."""
        is_whole = any(len(choice) == self._depth for choice in self._choices)
        return dict.fromkeys([*self.after, *(self._ends if is_whole else ())])


_NOWHERE = _Node([], 0, ())


class Place:
    """Where one answer stands among the choices."""

    def __init__(self, node: _Node) -> None:
        self.node = node

    def accept(self, token: int) -> None:
        self.node = self.node.after.get(token) or _NOWHERE

    def allows(self, token: int) -> bool:
        """A choice goes on with a token, or ends before it."""
        return token in self.node.tokens

    def count_allowed(self, tokens: list[int]) -> int:
        """So many of some tokens may come next, one after the other."""
        node = self.node
        for count, token in enumerate(tokens):
            if token not in node.after:
                return count
            node = node.after[token]
        return len(tokens)

    def forced(self, most: int) -> list[int]:
        """Tokens that can alone come next, at most so many."""
        node, found = self.node, list[int]()
        while len(found) < most and len(node.tokens) == 1 and node.after:
            found.extend(node.tokens)
            node = node.after[found[-1]]
        return found

    def is_over(self) -> bool:
        """Nothing may follow."""
        return not self.node.after


class Choices:
    """What answers have to be one of.

    Args:
        sequences: Token ids of each choice, several ways to write one among them.
        ends: Token ids that end an answer; without any, a choice that another one begins with is never taken.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], ends: frozenset[int]) -> None:
        self._root = _Node(list(set(map(tuple, sequences))), 0, tuple(ends))

    def begin(self) -> Place:
        """Of an answer that has not begun."""
        return Place(self._root)

    def mask(self, logits: Tensor, places: list[Place]) -> Tensor:
        """(B, V) logits with -inf where no choice goes on with a token."""
        import torch

        tokens = [place.node.tokens for place in places]
        counts = torch.tensor([len(some) for some in tokens])
        rows = torch.arange(len(places)).repeat_interleave(counts).to(logits.device)
        columns = torch.tensor(list(chain.from_iterable(tokens)), dtype=torch.int64).to(logits.device)
        held = torch.full_like(logits, float("-inf"))
        held[rows, columns] = logits[rows, columns]
        return held
