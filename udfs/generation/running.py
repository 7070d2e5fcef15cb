"""The sequences in the cache: those whose prompts are read one by one, and those that are being written in a table.

Most are being written, and of these a step needs the same few numbers: they lie in arrays, so that Python looks at a
sequence only where something happens to it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from udfs.generation.cache import Slot
from udfs.generation.drafting import LOOKED, Draft
from udfs.generation.sequences import PICKED, Sequence, note_ids, tell

# past: tokens in the cache; start, capacity: of its slot; more: tokens that it may need beyond that; row: of the logits
# of the step that is looked at next.
_TOLD = np.dtype(
    [*PICKED.descr, *LOOKED.descr, *((name, np.int64) for name in ("past", "start", "capacity", "more", "row"))]
)


@dataclass(eq=False)
class Active:
    """A sequence in the cache.

    Args:
        sequence: What is written.
        slot: Where its keys and values are.
        read: What is read before the next token is written: the prompt, or all of a text that is read again.
        past: Tokens of it that are there; while it is being written, the table knows.
        begun: It has been looked at for a prefix that another has.
        awaited: The sequence that it has waited for.
        hashes: Of the blocks of what is read.
        draft: What it may go on with; None before anybody looks.
        settled: Its slot has room for the longest answer, and stays its own.
    """

    sequence: Sequence
    slot: Slot
    read: np.ndarray
    past: int = 0
    begun: bool = False
    awaited: Active | None = None
    hashes: list[int] = field(default_factory=list)
    draft: Draft | None = None
    settled: bool = False

    @property
    def longest(self) -> int:
        """Tokens of prompt and longest answer."""
        return len(self.sequence.prompt) + self.sequence.way.most

    @property
    def more(self) -> int:
        """Tokens that it may need beyond its slot."""
        return 0 if self.settled else self.longest - self.slot.slab.capacity

    @property
    def unread(self) -> int:
        """Tokens that are to be run before it is written."""
        return max(0, len(self.read) - self.past)

    def read_again(self) -> None:
        """Begin anew, with what is written so far."""
        self.read, self.past = np.concatenate([self.sequence.prompt, np.array(self.sequence.ids, dtype=np.int32)]), 0


class Writing:
    """The sequences that are being written, in the order in which they came to be.

    Attributes:
        actives, sequences: Them.
        told: (B,) what is told of each.
    """

    def __init__(self) -> None:
        self.actives: list[Active] = []
        self.sequences: list[Sequence] = []
        self.told = np.zeros(0, dtype=_TOLD)

    def __len__(self) -> int:
        return len(self.actives)

    def slots(self) -> list[Slot]:
        return [active.slot for active in self.actives]

    def join(self, actives: list[Active]) -> None:
        """They are read."""
        if not actives:
            return
        told, picked = np.zeros(len(actives), dtype=_TOLD), tell([active.sequence for active in actives])
        for name in PICKED.names or ():
            told[name] = picked[name]
        told["past"] = [active.past for active in actives]
        told["start"] = [active.slot.start for active in actives]
        told["capacity"] = [active.slot.slab.capacity for active in actives]
        told["more"] = [active.more for active in actives]
        self.actives += actives
        self.sequences += [active.sequence for active in actives]
        self.told = np.concatenate([self.told, told])

    def move(self, active: Active, slot: Slot) -> None:
        """It has another slot, which is long enough."""
        active.slot, active.settled = slot, True
        told = self.told[self.actives.index(active)]
        told["start"], told["capacity"], told["more"] = slot.start, slot.slab.capacity, 0

    def look_for_drafts(self) -> list[Draft]:
        """What each may go on with; of those that have just come, by their prompts alone."""
        for row in np.flatnonzero(self.told["noted"] == 0).tolist():
            active = self.actives[row]
            active.draft = draft = Draft(active.sequence)
            self.told["pair"][row], self.told["noted"][row] = draft.first, len(active.sequence.prompt)
        return [active.draft for active in self.actives if active.draft is not None]

    def past_of(self, active: Active) -> int:
        return int(self.told["past"][self.actives.index(active)])

    def take_out(self, rows: Collection[int]) -> list[Active]:
        """Forget some; each then knows its own past."""
        if not rows:
            return []
        which = sorted(rows)
        note_ids(self.told, which, self.sequences)
        out = [self.actives[row] for row in which]
        for active, past in zip(out, self.told["past"][which].tolist(), strict=True):
            active.past = past
        self.told = np.delete(self.told, which)
        for row in reversed(which):  # a list made anew would touch each object that stays
            del self.actives[row], self.sequences[row]
        return out
