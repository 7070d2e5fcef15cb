"""Drafts: tokens that may come next, run beside a sequence's last one, so that a step writes several.

They are what followed the same tokens in the prompt or in what is written, or what a grammar spells. Each is picked as
it would be without: a draft that is not what comes out is forgotten. So drafts change no answer, and are made where a
row of the model costs less than it is likely to save.

Source: prompt lookup decoding (Saxena); transformers, `PromptLookupCandidateGenerator`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from udfs.generation.sequences import Sequence

_BITS, _LOW = 32, 0xFFFFFFFF  # of a token, in a number that holds two
MOST_DRAFTED = 8  # tokens looked up for one step
_MOST_FORCED = 15
_FADES, _FADES_FOR_ALL = 0.9, 0.999  # what is known of a sequence's drafts, and of all, with each that is made
_WEIGHS = 4.0  # what is known of other sequences weighs as much as so many drafts of this one
_LIKELY = {"long": 0.6, "short": 0.4, "forced": 0.9}  # to be right, before any was seen
_KNOWN = 20.0  # drafts that this counts for
_SURE = 0.99


@dataclass
class _Record:
    """How many drafts were right, of those that were looked at."""

    right: float = 0.0
    seen: float = 0.0

    def note(self, right: int, seen: int, fades: float = 1.0) -> None:
        self.right, self.seen = self.right * fades + right, self.seen * fades + seen


class Draft:
    """What one sequence may go on with: what followed its last two tokens when they were last there.

    Args:
        sequence: Has begun to be written.

    Attributes:
        guess: What was last thought to come next; all of it was run, or only looked at.
    """

    __slots__ = ("_after", "_last", "_noted", "_place", "_prompt", "guess", "kind", "records", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        tokens = sequence.prompt
        pairs = (tokens[:-1].astype(np.int64) << _BITS) | tokens[1:]
        self.sequence, self.guess, self.kind = sequence, list[int](), ""
        self.records = {kind: _Record() for kind in _LIKELY}
        self._prompt, self._noted, self._place = tokens, 0, -1
        self._after = dict(zip(pairs[:-1].tolist(), range(2, len(tokens)), strict=True)) if len(tokens) > 2 else {}
        self._last = int(pairs[-1]) if len(pairs) else int(tokens[-1])

    def look(self) -> bool:
        """Note what was written since; whether there is something to go on with."""
        ids, after, last, place = self.sequence.ids, self._after, self._last, len(self._prompt) + self._noted
        for token in ids[self._noted :]:
            after[last] = place
            place += 1
            last = (last & _LOW) << _BITS | token
        self._noted, self._last, self._place = len(ids), last, after.get(last, -1)
        return self._place >= 0 or self.sequence.matcher is not None

    def unseen(self) -> list[int]:
        """What was written since the last look."""
        return self.sequence.ids[self._noted :]

    def find(self, most: int) -> tuple[str, list[int]]:
        """What followed, and whether three tokens were the same; nothing where the last two are new."""
        if self._place < 0:
            return "", []
        end = len(self._prompt) + self._noted
        alike = self._place > 2 and self._at(self._place - 3) == self._at(end - 3)
        found = [self._at(place) for place in range(self._place, min(self._place + most, end))]
        return "long" if alike else "short", (found * -(-most // len(found)))[:most]  # it begins anew at the end

    def _at(self, place: int) -> int:
        size = len(self._prompt)
        return int(self._prompt[place]) if place < size else self.sequence.ids[place - size]


class Drafter:
    """Makes drafts for the sequences of one decoder, as long as they pay.

    Args:
        read_rows: Rows of a call that take as long as it takes to read the weights.
        past_share: What attention to one token of the past takes, as a share of that.
    """

    def __init__(self, *, read_rows: float, past_share: float = 0.0) -> None:
        self._row, self._past = 1.0 / read_rows, past_share
        self._records = {kind: _Record(chance * _KNOWN, _KNOWN) for kind, chance in _LIKELY.items()}

    def price(self, writing: int, pasts: int) -> float:
        """The chance to be right from which a draft pays: what a row takes, over what a token takes.

        Args:
            writing: Sequences of the step.
            pasts: Tokens that they attend to.
        """
        return writing * self._row / (1.0 + writing * self._row + pasts * self._past)

    def is_worth_a_look(self, draft: Draft) -> bool:
        """Learn from what was written how good the last guess was; whether there is something to go on with now."""
        if draft.guess:
            self._learn(draft, draft.unseen())
        return draft.look()

    def draft(self, draft: Draft, *, most: int, price: float) -> list[int]:
        """What is to be run after a sequence's last token; what is guessed and not run is learnt from all the same."""
        draft.kind, guess = self._guess(draft, most) if most > 0 else ("", [])
        run = guess[: self._count(draft, price)] if guess else []
        draft.guess = run or guess[:1]
        return run

    def _learn(self, draft: Draft, written: list[int]) -> None:
        right = 0
        for guessed, token in zip(draft.guess, written, strict=False):
            if guessed != token:
                break
            right += 1
        seen = right + (right < min(len(draft.guess), len(written)))
        draft.records[draft.kind].note(right, seen, _FADES)
        self._records[draft.kind].note(right, seen, _FADES_FOR_ALL)
        draft.guess = []

    def _guess(self, draft: Draft, most: int) -> tuple[str, list[int]]:
        matcher = draft.sequence.matcher if draft.sequence.thinks is False else None
        if matcher is not None and (forced := matcher.forced(min(most, _MOST_FORCED))):
            return "forced", forced
        kind, guess = draft.find(min(most, MOST_DRAFTED))
        if guess and matcher is not None:
            guess = guess[: matcher.count_allowed(guess)]
        return kind, guess

    def _count(self, draft: Draft, price: float) -> int:
        """So many that the last still pays, if each is as likely to be right as others were."""
        all_, own = self._records[draft.kind], draft.records[draft.kind]
        chance = min(_SURE, (own.right + _WEIGHS * all_.right / all_.seen) / (own.seen + _WEIGHS))
        if chance <= price:
            return 0
        return int(math.log(price) / math.log(chance))
