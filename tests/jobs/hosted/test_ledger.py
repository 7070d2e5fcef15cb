"""What is written down of requests, read again as another driver does."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.folder import Folder
from jobs.hosted.cutting import cut_batch, halve
from jobs.hosted.ledger import START, Batch, Cut, Ledger, Place
from jobs.hosted.provider import Bounds, Usage
from jobs.increments.batches import asked_span
from jobs.input.spans import Span
from tests.jobs.hosted.flying import make_body, open_at, read_asked, write_asked
from tests.stores import OneLie, driver_on, pretend


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return write_asked(Folder(str(tmp_path)), [make_body("openai-batch", number) for number in range(10)])


def test_lines_are_read_from_any_place_on(ledger: Ledger) -> None:
    asked = read_asked(ledger)
    lines = list(ledger.lines(asked, Cut(START)))
    assert len({line.id for line in lines}) == 10
    assert lines[-1].end == Place(3, 0)
    for number, line in enumerate(lines):
        assert [rest.id for rest in ledger.lines(asked, Cut(line.end))] == [r.id for r in lines[number + 1 :]]
        assert [first.id for first in ledger.lines(asked, Cut(START, line.end))] == [r.id for r in lines[: number + 1]]


def test_a_batch_is_cut_at_each_bound_and_holds_a_line_at_least(ledger: Ledger, tmp_path: Path) -> None:
    asked, provider = read_asked(ledger), open_at("http://127.0.0.1:9", "key", "openai-batch")

    def cut(bounds: Bounds) -> int:
        file = tmp_path / "file"
        made = cut_batch(
            ledger, asked, Cut(START), "00000", provider=provider, bounds=bounds, most_output=lambda _: 1, file=file
        )
        assert made.requests == len(file.read_bytes().splitlines()) == made.most_output
        assert made.bytes == file.stat().st_size
        return made.requests

    assert cut(Bounds(1000, 1 << 20)) == 10
    assert cut(Bounds(3, 1 << 20)) == 3
    assert cut(Bounds(1000, 1 << 20, tokens=45)) == 4
    assert cut(Bounds(1000, 1)) == 1
    assert cut(Bounds(1000, 1 << 20, tokens=1)) == 1


def test_halves_are_the_whole(ledger: Ledger) -> None:
    asked = read_asked(ledger)
    whole = Cut(START, Place(3, 0), requests=10)
    first, second = halve(ledger, asked, whole)
    assert (first.requests, second.requests) == (5, 5)
    both = [line.id for half in (first, second) for line in ledger.lines(asked, half)]
    assert both == [line.id for line in ledger.lines(asked, whole)]


def test_another_driver_reads_how_far_each_batch_is(ledger: Ledger, tmp_path: Path) -> None:
    cut = Cut(START, Place(1, 0), requests=4, digest="d")
    batches = [Batch(f"0000{number}", cut, 1.0, None) for number in range(5)]
    for batch in batches:
        ledger.intend(batch)
    made = [ledger.keep_created(batch, f"id-{batch.name}") for batch in batches[1:]]
    ledger.keep_cancelled(made[1], "expired")
    ledger.keep_split(made[2], (Cut(START, requests=2), Cut(Place(0, 7), Place(1, 0), 2)), "why")
    ledger.keep_collected(made[3], Usage(1, 2, 0), replies=4)
    found = Ledger(Folder(str(tmp_path)), "_gristmill", 0).batches()
    assert [batch.id for batch in found] == [None, *(f"id-0000{number}" for number in range(1, 5))]
    assert [batch.cancelled for batch in found] == [None, None, "expired", None, None]
    assert [batch.is_over for batch in found] == [False, False, False, True, True]
    assert found[3].halves[1] == Cut(Place(0, 7), Place(1, 0), 2)
    assert found[4].usage == Usage(1, 2, 0)
    ledger.delete()
    assert ledger.asked() is None


@pytest.mark.parametrize("at", range(1, 5))
def test_batches_that_a_store_once_does_not_find_are_not_sent_again(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    assert ledger.batches() == []
    ledger.intend(Batch("00000", Cut(START, requests=4), 1.0, None))
    pretend(monkeypatch, "hdfs")
    with driver_on(OneLie(at)), contextlib.suppress(FileNotFoundError):
        assert len(Ledger(Folder(str(tmp_path)), "_gristmill", 0).batches()) == 1


def test_the_rows_of_a_table_that_were_asked_about_are_known_by_the_next_run(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    output: Any = SimpleNamespace(folder=folder, home="_gristmill")
    assert asked_span(output, 0) is None
    ledger, span = Ledger(folder, "_gristmill", 0), Span(3, 5, 0, 7, ("id", "text"))
    folder.make(f"{ledger.path}/asked")
    assert asked_span(output, 0) is None  # its requests are not all written
    told = {"span": asdict(span), "bytes": 12}
    ledger.keep_asked(about=told, lines=0, tokens=0, made=0, made_tokens=0)
    assert asked_span(output, 0) == (span, 12)
    assert asked_span(output, 1) is None
    Ledger(folder, "_gristmill", 1).keep_asked(about={}, lines=0, tokens=0, made=0, made_tokens=0)
    assert asked_span(output, 1) is None  # as an earlier gristmill has noted it
