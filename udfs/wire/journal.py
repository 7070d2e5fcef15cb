"""What was running when an engine died: the engine writes it down before each micro-batch, clients read it after."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Running(Protocol):
    """What the journal asks of a micro-batch."""

    @property
    def whose(self) -> str:
        """Client, number of its parcel and places in it, of all items: lists of JSON, with commas between them."""
        ...

    def digest_alone(self) -> str | None:
        """Digest of the item that runs all by itself; None where several do."""
        ...


@dataclass(frozen=True)
class Fallen:
    """How an engine ended.

    Args:
        answered: Items that it had run.
        budget: Its token budget at the end, 0 where it had not run anything.
        suspects: Client -> number of a parcel -> places of the items that were running.
        alone: Digest of the item that was running all by itself; None where several were.
    """

    answered: int
    budget: int
    suspects: dict[str, dict[int, list[int]]]
    alone: str | None = None


class Journal:
    """One line of JSON a lane, written in place; what is written survives the process, not the machine.

    Args:
        folder: The engine's directory.
        lanes: How many lanes write.
    """

    def __init__(self, folder: Path, lanes: int) -> None:
        self._files = [
            os.open(folder / f"lane-{n}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600) for n in range(lanes)
        ]
        self._answered = [0] * lanes

    def begin(self, lane: int, batches: Sequence[Running], budget: int) -> None:
        """A lane is about to run some micro-batches at once."""
        running = ", ".join([batch.whose for batch in batches])
        alone = next((digest for batch in batches if (digest := batch.digest_alone())), None)
        self._write(lane, budget, running, alone)

    def end(self, lane: int, answered: int) -> None:
        """A lane is done with its micro-batch, whose items are counted unless they are to be run again."""
        self._answered[lane] += answered
        self._write(lane, 0, "", None)

    def _write(self, lane: int, budget: int, running: str, alone: str | None) -> None:
        told = json.dumps({"answered": self._answered[lane], "budget": budget, "alone": alone})
        line = f'{told[:-1]}, "running": [{running}]}}\n'
        with contextlib.suppress(OSError):  # a full disk: the work goes on, a death would only be told less exactly
            os.pwrite(self._files[lane], line.encode(), 0)  # what a longer line leaves is after it


def read_journal(folder: Path) -> Fallen:
    """What a dead engine's lanes were doing."""
    answered, budget, alone = 0, 0, None
    suspects: dict[str, dict[int, list[int]]] = {}
    for path in sorted(folder.glob("lane-*")):
        with contextlib.suppress(ValueError):  # it died before it wrote its first line
            line = json.loads(path.read_bytes().split(b"\n", 1)[0])
            answered, budget = answered + line["answered"], max(budget, line["budget"])
            alone = alone or line["alone"]
            for client, number, places in line["running"]:
                suspects.setdefault(client, {}).setdefault(number, []).extend(places)
    return Fallen(answered, budget, suspects, alone)
