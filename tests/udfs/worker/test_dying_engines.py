"""Texts that kill an engine, or for which its memory does not suffice: they fail alone, and nobody is lost."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engine_faults import read_lines
from tests.engine_rows import HARMLESS, TEXTS, Faults, check_answers, codes_of, rows_of
from tests.models import VOCABULARY
from udfs.errors import EngineError
from udfs.spec import ScoreSpec

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "way", ["exit", "segfault", "kill", "hang", "hang with Python's lock", "device is lost", "raise"]
)
def test_a_text_that_kills_the_engine_fails_alone_and_kills_none_again(
    way: str, spec: ScoreSpec, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = {"keeper._GRACE_S": 1.0}
    starts = faults(poison=VOCABULARY["poison"], way=way, constants=constants)
    # Small micro-batches, so that neighbours are running and waiting, and answered before and after.
    spec = replace(spec, batch_timeout_s=2, max_batch_tokens=128)
    texts = [*TEXTS[:30], "red poison", *TEXTS[30:]]
    rows = rows_of(texts, spec)
    assert codes_of(rows) == [None] * 30 + ["device_fault"] + [None] * 30
    check_answers(rows, texts, spec)
    assert "poison" not in rows[30]["error"]["message"]
    deaths = len(read_lines(starts)) - 1
    # Once among others, once alone; once more where no word of it says that nobody else has killed it.
    assert deaths == {"raise": 0, "exit": 3, "kill": 3}.get(way, 2)
    again = rows_of(["tea", "red poison", "soil"], spec)
    assert codes_of(again) == [None, "device_fault", None]
    assert len(read_lines(starts)) - 1 == deaths
    assert again[0]["engine"] == rows[0]["engine"] or deaths


def test_a_token_that_the_model_does_not_know_fails_its_row_alone(
    encoder: str, spec: ScoreSpec, top: Path, tmp_path: Path
) -> None:
    """No fault is planted: on a CPU the model raises, on a GPU a device-side assert ends the engine."""
    path = tmp_path / "cut"
    shutil.copytree(encoder, path)
    weights = load_file(path / "model.safetensors")
    rows = weights["embeddings.word_embeddings.weight"]
    weights["embeddings.word_embeddings.weight"] = rows[:-1].contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": len(rows) - 1}))
    assert max(VOCABULARY, key=VOCABULARY.__getitem__) == "##9"
    texts = [*TEXTS[:9], "red x9", *TEXTS[9:18]]
    assert codes_of(rows_of(texts, replace(spec, model=str(path)))) == [
        "device_fault" if re.search(r"\d9|x9", text) else None for text in texts
    ]


def test_several_texts_that_kill_are_told_apart_from_their_neighbours(spec: ScoreSpec, faults: Faults) -> None:
    """Five of about the same length, so that engines die on them one after the other."""
    faults(poison=VOCABULARY["poison"], way="segfault")
    bad = [7, 8, 40, 41, 42]
    texts = [" ".join([*HARMLESS, "poison", str(place)]) if place in bad else text for place, text in enumerate(TEXTS)]
    rows = rows_of(texts, spec)
    assert [place for place, code in enumerate(codes_of(rows)) if code == "device_fault"] == bad
    assert codes_of(rows).count(None) == len(TEXTS) - len(bad)
    check_answers(rows, texts, spec)


def test_a_text_that_kills_is_known_to_all_clients_at_once(spec: ScoreSpec, faults: Faults) -> None:
    starts = faults(poison=VOCABULARY["poison"], way="segfault")
    texts = [*TEXTS[:20], "red poison", *TEXTS[20:], "red poison"]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: rows_of(texts, replace(spec, dedupe=False)), range(3)))
    for rows in found:
        assert [place for place, code in enumerate(codes_of(rows)) if code] == [20, len(texts) - 1]
        assert {code for code in codes_of(rows) if code} == {"device_fault"}
    # Two deaths find it out; another client may have sent its own copy among others before it was found.
    assert 3 <= len(read_lines(starts)) <= 5


def test_memory_that_becomes_less_and_less_costs_only_what_fits_no_more(spec: ScoreSpec, faults: Faults) -> None:
    faults(cap=500, shrinks_to=20, constants={"runner._MEMORY_PAUSE_S": 0.0})
    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    rows = rows_of(texts, replace(spec, window_rows=60))
    lengths = [row["usage"]["input_tokens"] for row in rows]
    assert set(codes_of(rows)) == {None, "out_of_memory"}
    assert all(length > 20 for length, code in zip(lengths, codes_of(rows), strict=True) if code)
    assert codes_of(rows).count(None) > 400
    check_answers(rows, texts, spec)


@pytest.mark.parametrize("way", ["exit", "raise"])
def test_an_engine_that_fails_on_every_text_fails_the_job(way: str, spec: ScoreSpec, faults: Faults) -> None:
    starts = faults(poison=-1, way=way)
    reason = "died 5 times in succession" if way == "exit" else "fails on every text: IndexError: index out of range"
    with pytest.raises(EngineError, match=reason):
        rows_of(TEXTS, spec)
    assert len(read_lines(starts)) == (5 if way == "exit" else 1)
