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


# What is known of each sequence's drafts. pair: its last two tokens when it was last looked at; noted: tokens that it
# had then, 0 before; guessed: something was thought to come next.
LOOKED = np.dtype([("pair", np.int64), ("noted", np.int64), ("guessed", np.bool_)])


class Draft:
    """What one sequence may go on with: what followed its last two tokens when they were last there.

    Args:
        sequence: Has begun to be written.

    Attributes:
        after: By two tokens, the place after them, when they were last there.
        first: The last two of the prompt, which are not in it.
        guess: What was last thought to come next; all of it was run, or only looked at.
    """

    __slots__ = ("_prompt", "after", "first", "guess", "kind", "records", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        tokens = sequence.prompt
        pairs = (tokens[:-1].astype(np.int64) << _BITS) | tokens[1:]
        self.sequence, self.guess, self.kind = sequence, list[int](), ""
        self.records = {kind: _Record() for kind in _LIKELY}
        self._prompt = tokens
        self.after = dict(zip(pairs[:-1].tolist(), range(2, len(tokens)), strict=True)) if len(tokens) > 2 else {}
        self.first = int(pairs[-1]) if len(pairs) else int(tokens[-1])

    def note(self, pair: int, noted: int) -> int:
        """Note what was written since, but for the last token; returns the two tokens before that.

        Args:
            pair: The last two that were there then.
            noted: So many were.
        """
        for place, token in enumerate(self.written_since(noted)[:-1], noted):
            self.after[pair] = place
            pair = (pair & _LOW) << _BITS | token
        return pair

    def written_since(self, noted: int) -> list[int]:
        """What has come to a text of so many tokens."""
        return self.sequence.ids[noted - len(self._prompt) :]

    def find(self, place: int, most: int) -> tuple[str, list[int]]:
        """What followed, from a place on, and whether three tokens were the same; nothing where there is no place."""
        if place < 0:
            return "", []
        end = len(self._prompt) + len(self.sequence.ids)
        alike = place > 2 and self._at(place - 3) == self._at(end - 3)
        found = [self._at(next_) for next_ in range(place, min(place + most, end))]
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

    def find_noted(self, told: np.ndarray) -> list[int]:
        """Of which sequences `look` reads the ids; of the others their last token says enough."""
        return np.flatnonzero(told["guessed"] | (told["past"] > told["noted"])).tolist()

    def look(self, drafts: list[Draft], told: np.ndarray) -> list[int]:
        """Where in each text its last two tokens were before, and what followed them; -1 where they are new.

        Learns from what was written how good the last guesses were.

        Args:
            drafts: Of some sequences.
            told: (B,) `LOOKED` of each, which is brought up to date, and its `last` token and `past` before that.
        """
        for row in np.flatnonzero(told["guessed"]).tolist():
            self._learn(drafts[row], drafts[row].written_since(int(told["noted"][row])))
        told["guessed"] = False
        before, pasts = told["pair"], told["past"]
        for row in np.flatnonzero(pasts > told["noted"]).tolist():
            before[row] = drafts[row].note(int(before[row]), int(told["noted"][row]))
        pairs = (before & _LOW) << _BITS | told["last"]
        for draft, pair, past in zip(drafts, before.tolist(), pasts.tolist(), strict=True):
            draft.after[pair] = past
        told["pair"], told["noted"] = pairs, pasts + 1
        return [draft.after.get(pair, -1) for draft, pair in zip(drafts, pairs.tolist(), strict=True)]

    def draft(self, draft: Draft, place: int, *, most: int, price: float) -> list[int]:
        """What is to be run after a sequence's last token; what is guessed and not run is learnt from all the same.

        Args:
            draft: Of the sequence.
            place: Where its last two tokens were before.
            most: So many tokens at most.
            price: As `price` has it.
        """
        draft.kind, guess = self._guess(draft, place, most) if most > 0 else ("", [])
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

    def _guess(self, draft: Draft, place: int, most: int) -> tuple[str, list[int]]:
        matcher = draft.sequence.matcher if draft.sequence.thinks is False else None
        if matcher is not None and (forced := matcher.forced(min(most, _MOST_FORCED))):
            return "forced", forced
        kind, guess = draft.find(place, min(most, MOST_DRAFTED))
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
