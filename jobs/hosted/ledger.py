"""What is written down of an increment's requests, so that each of them is paid once, whatever is killed and when.

    requests/increment=000000/
        asked/                        the distinct requests, a line each, as Spark's tasks have written them
        asked.json                    all of them are there, in these files: nothing is asked anew from here on
        batches/00000.intent.json     these lines are about to be sent
        batches/00000.created.json    they are this batch of the provider's
        batches/00000.cancel.json     it is about to be cancelled, and why
        batches/00000.split.json      it was refused as a whole: 00000.0 and 00000.1 have its lines instead
        batches/00000.collected.json  its replies are in results/, with their tokens
        results/00000.lines           a reply a line, for each bucket of rows that waits for it: bucket, reply

It lies below the job's home in the output, and goes once its increment is committed.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

from jobs.folder import Folder
from jobs.hosted.provider import PREFIX, Sent, Usage, Why
from jobs.output.committed import name_of

REQUESTS, UNSENT, RESULTS = "requests", "unsent", ".lines"
_PIECE = 1 << 20
Note = Literal["intent", "created", "cancel", "split", "collected"]


class Place(NamedTuple):
    """Where a line begins: in which of the asked files, and how many bytes from its start."""

    file: int
    offset: int


START = Place(0, 0)


class AskedLine(NamedTuple):
    """A request, as Spark's tasks have written it.

    Args:
        id: Of its content.
        tokens: Estimated, of what goes in.
        times: How often the increment asks it.
        buckets: Of the rows that wait for its reply.
        body: JSON.
        end: Where it ends.
    """

    id: str
    tokens: int
    times: int
    buckets: tuple[str, ...]
    body: bytes
    end: Place


@dataclass(frozen=True)
class Asked:
    """The requests of an increment.

    Args:
        id: Random; it is in the metadata and the custom ids of the increment's batches.
        files: Names and sizes of the files below `asked/`.
        lines: Distinct requests.
        tokens: Of these, estimated.
        made: Requests before identical ones were made one.
        made_tokens: Of these.
        about: What its rows are found by, where that may have changed by the next run.
    """

    id: str
    files: tuple[tuple[str, int], ...]
    lines: int
    tokens: int
    made: int
    made_tokens: int
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """A range of the asked lines that is a batch, or is to be one.

    Args:
        start, end: The range; the end of what is not cut yet is None.
        requests, tokens, bytes: Of its lines.
        most_output: Tokens that they may be answered with at most; 0 where nobody asks.
        digest: Of their ids.
    """

    start: Place
    end: Place | None = None
    requests: int = 0
    tokens: int = 0
    bytes: int = 0
    most_output: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Batch:
    """A batch as its notes tell of it.

    Args:
        name: `00000`; its halves are `00000.0` and `00000.1`.
        cut: Its lines.
        newest: As of `Sent`.
        id: The provider's, once it is known.
        cancelled: Why it was cancelled.
        halves: What it was split into.
        usage: Of its replies, once they are collected.
    """

    name: str
    cut: Cut
    newest: str | None
    id: str | None = None
    cancelled: Why | None = None
    halves: tuple[Cut, ...] = ()
    usage: Usage | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.usage is not None or bool(self.halves)

    def sent(self, asked: Asked) -> Sent:
        """What a provider finds it by."""
        return Sent(f"{asked.id}/{self.name}", prefix_of(asked, self.name), self.cut.requests, self.newest)


def prefix_of(asked: Asked, name: str) -> str:
    """What the custom ids of a batch begin with: 12 characters."""
    return f"{PREFIX}-{hashlib.blake2b(f'{asked.id}/{name}'.encode(), digest_size=4).hexdigest()}-"


class Ledger:
    """The notes of one increment's requests.

    Args:
        folder: The output.
        home: Of the job in it.
        number: Of the increment.
    """

    def __init__(self, folder: Folder, home: str, number: int) -> None:
        self._folder, self.path, self.number = folder, f"{home}/{REQUESTS}/{name_of(number)}", number

    @property
    def asked_path(self) -> str:
        """Where Spark's tasks write the requests, as Spark takes it."""
        return self._folder / f"{self.path}/asked"

    @property
    def results_path(self) -> str:
        """Where the replies are, as Spark takes it."""
        return self._folder / f"{self.path}/results"

    def asked(self) -> Asked | None:
        """The requests; None where they are not all written."""
        told = self._folder.find_json(f"{self.path}/asked.json")
        return Asked(**{**told, "files": tuple((name, size) for name, size in told["files"])}) if told else None

    def keep_asked(self, *, about: dict[str, Any], **counts: int) -> Asked:
        """Note that the requests are all written, and which files they are."""
        self._folder.sync(f"{self.path}/asked")
        found = [f for f in self._folder.walk(f"{self.path}/asked") if f.size and not f.name.startswith(("_", "."))]
        files = tuple(sorted((file.name, file.size) for file in found))
        asked = Asked(uuid.uuid4().hex[:16], files, about=about, **counts)
        self._folder.make(f"{self.path}/batches")  # not to find it is an error from here on
        self._folder.write_json(f"{self.path}/asked.json", asdict(asked), indent=None)
        return asked

    def batches(self) -> list[Batch]:
        """All batches that are sent, or are about to be, in order.

        Raises:
            OSError: The store does not tell; what is sent would be sent again, and paid for twice.
        """
        notes: dict[str, dict[str, Any]] = {}
        entries = self._folder.entries(f"{self.path}/batches", must_exist=self.asked() is not None)
        names = [name for name in entries if name.endswith(".json")]
        found = self._folder.read_all_json([f"{self.path}/batches/{name}" for name in names])
        for name, value in zip(names, found, strict=True):
            batch, kind = name.removesuffix(".json").rsplit(".", 1)
            notes.setdefault(batch, {})[kind] = value
        return [_read_batch(name, notes[name]) for name in sorted(notes) if "intent" in notes[name]]

    def intend(self, batch: Batch) -> None:
        """Note that lines are about to be sent."""
        cut = asdict(batch.cut)
        self._note(batch, "intent", {"cut": cut, "newest": batch.newest})

    def keep_created(self, batch: Batch, batch_id: str) -> Batch:
        """Note which batch of the provider's it is."""
        self._note(batch, "created", {"id": batch_id})
        return replace(batch, id=batch_id)

    def forget_created(self, batch: Batch) -> Batch:
        """The provider's batch was not run, and another is to be made of the same lines."""
        self._folder.delete(f"{self.path}/batches/{batch.name}.created.json")
        return replace(batch, id=None)

    def keep_cancelled(self, batch: Batch, why: Why) -> Batch:
        """Note that it is about to be cancelled."""
        self._note(batch, "cancel", {"why": why})
        return replace(batch, cancelled=why)

    def keep_split(self, batch: Batch, parts: tuple[Cut, ...], told: str) -> Batch:
        """Note that others have its lines."""
        self._note(batch, "split", {"parts": [asdict(part) for part in parts], "told": told})
        return replace(batch, halves=parts)

    def keep_collected(self, batch: Batch, usage: Usage, **counts: int) -> Batch:
        """Note that its replies are here."""
        self._note(batch, "collected", {"usage": asdict(usage), **counts})
        return replace(batch, usage=usage)

    def _note(self, batch: Batch, kind: Note, value: dict[str, Any]) -> None:
        self._folder.write_json(f"{self.path}/batches/{batch.name}.{kind}.json", value, indent=None)

    def lines(self, asked: Asked, cut: Cut) -> Iterator[AskedLine]:
        """The lines of a range, one after the other."""
        place, last = cut.start, Place(len(asked.files), 0)
        while place < (cut.end or last) and place.file < len(asked.files):
            name, size = asked.files[place.file]
            with self._folder.reading(f"{self.path}/asked/{name}", start=place.offset) as stream:
                for line in io.BufferedReader(cast(io.RawIOBase, stream), _PIECE):  # pyarrow's own kind of file
                    if place >= (cut.end or last):
                        return
                    offset = place.offset + len(line)
                    place = Place(place.file, offset) if offset < size else Place(place.file + 1, 0)
                    yield _read_line(line, place)

    def write_results(self, name: str, lines: Iterator[bytes]) -> int:
        """Keep replies; returns how many lines they are."""
        self._folder.make(f"{self.path}/results")
        count = 0
        with self._folder.writing(f"{self.path}/results/{name}{RESULTS}") as stream:
            for line in lines:
                stream.write(line)
                count += 1
        return count

    def forget_results(self, name: str) -> None:
        """Replies of a batch that a run before has begun to collect are collected anew."""
        for found in self._folder.entries(f"{self.path}/results"):
            if found == f"{name}{RESULTS}" or found.startswith(f"{name}-"):
                self._folder.delete(f"{self.path}/results/{found}")

    def forget_unsent(self) -> None:
        """Lines that a run before has left are sent by this one."""
        self._folder.delete(f"{self.path}/results/{UNSENT}{RESULTS}")

    def result_bytes(self) -> int:
        """Of all replies that are here."""
        found = self._folder.walk(f"{self.path}/results")
        return sum(file.size for file in found if file.name.endswith(RESULTS))

    def delete(self) -> None:
        """Forget all of it; its increment is committed."""
        self._folder.delete(self.path)


def find_ledgers(folder: Folder, home: str) -> list[Ledger]:
    """The ledgers of all increments that are not committed, in order."""
    names = [name for name in folder.entries(f"{home}/{REQUESTS}") if name.startswith("increment=")]
    return [Ledger(folder, home, int(name.partition("=")[2])) for name in names]


def _read_batch(name: str, notes: dict[str, dict[str, Any]]) -> Batch:
    intent, split, collected = notes["intent"], notes.get("split"), notes.get("collected")
    return Batch(
        name,
        _read_cut(intent["cut"]),
        intent["newest"],
        notes.get("created", {}).get("id"),
        notes.get("cancel", {}).get("why"),
        tuple(map(_read_cut, split["parts"])) if split else (),
        Usage(**collected["usage"]) if collected else None,
    )


def _read_cut(told: dict[str, Any]) -> Cut:
    return Cut(**{**told, "start": Place(*told["start"]), "end": Place(*told["end"]) if told["end"] else None})


def _read_line(line: bytes, end: Place) -> AskedLine:
    id_, tokens, times, buckets, body = line.rstrip(b"\n").split(b"\t", 4)
    return AskedLine(id_.decode(), int(tokens), int(times), tuple(buckets.decode().split(",")), body, end)
