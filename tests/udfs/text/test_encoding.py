from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import MINILM
from udfs.model.files import open_model
from udfs.text import encoding
from udfs.text.encoding import Encoder, by_reference
from udfs.text.fast import Tokie
from udfs.text.holding import Verdict
from udfs.text.tokenizing import Tokenizer as OurTokenizer

ASCII = Verdict(True, True, ((32, 127),))
TEXTS = ["a red kettle", "thé", "tea [SEP] tea", "", "x" * 300, "spade", "[sep]", "tea\x13"]


@pytest.fixture
def file() -> Path:
    return open_model(MINILM).root / "tokenizer.json"


@pytest.fixture
def backend(file: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(file))
    made.no_padding()
    made.no_truncation()
    return made


class StandIn:
    """A trial that has found something once it was started."""

    finds: Verdict | RuntimeError | None = ASCII
    library = "tokie"
    started = 0
    remembers = False

    def __init__(self, file: Path) -> None: ...

    def start(self) -> None:
        StandIn.started += 1

    def recall(self) -> Verdict | None:
        if isinstance(StandIn.finds, RuntimeError):
            raise StandIn.finds
        return StandIn.finds if StandIn.started or StandIn.remembers else None


@pytest.fixture(autouse=True)
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """In the place of a node's trials; nothing is remembered by this process either."""
    monkeypatch.setattr(encoding, "Trial", StandIn)
    monkeypatch.setattr(encoding, "_WORTHWHILE", 10)
    StandIn.finds, StandIn.started, StandIn.remembers = ASCII, 0, False
    encoding._faster_of.cache_clear()
    yield StandIn
    encoding._faster_of.cache_clear()


def test_ids_are_the_reference_s_in_the_order_of_the_texts_whichever_library_makes_them(
    backend: Tokenizer, file: Path, trial: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = Tokie.encode
    monkeypatch.setattr(Tokie, "encode", lambda fast, texts: seen.extend(texts) or encode(fast, texts))
    trial.remembers = True
    encoder = Encoder(backend, file)
    found, wanted = encoder(TEXTS), by_reference(backend, TEXTS)
    assert encoder.name == "tokie"
    assert set(seen) >= {"a red kettle", "x" * 300, "spade"}
    assert not {"thé", "tea [SEP] tea", "[sep]", "tea\x13"} & {*seen}
    assert (found.ids.tolist(), found.offsets.tolist()) == (wanted.ids.tolist(), wanted.offsets.tolist())
    assert found.ids.dtype == np.int32


def test_the_libraries_are_compared_once_it_is_worthwhile_and_the_next_task_knows(
    backend: Tokenizer, file: Path, trial: type[StandIn]
) -> None:
    Encoder(backend, file)(["a red kettle"])
    assert trial.started == 0
    encoder = Encoder(backend, file)
    encoder(["a red kettle, a spade, and one more of each"])
    assert trial.started == 1
    assert encoder.name == Encoder(backend, file).name == "tokie"


@pytest.mark.parametrize("told", [None, Verdict(equal=False), RuntimeError("no such kind")])
def test_without_a_proof_the_reference_is_used(
    told: Verdict | RuntimeError | None, backend: Tokenizer, file: Path, trial: type[StandIn]
) -> None:
    trial.finds = told
    encoder = Encoder(backend, file)
    encoder(["a red kettle, a spade, and one more of each"])
    assert encoder.name == "tokenizers"
    assert encoder(TEXTS).ids.tolist() == by_reference(backend, TEXTS).ids.tolist()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [4, 7, 300])
def test_what_is_cut_and_put_around_is_tokenizers_own(
    max_tokens: int, side: str, backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a red kettle and a spade", "tea", "", "one two three four five six seven eight"]
    tokenizer = OurTokenizer(open_model(MINILM), max_tokens=max_tokens, overflow="truncate")
    tokenizer._direction = side
    found = tokenizer(texts)
    backend.enable_truncation(max_tokens, direction=side)
    wanted = backend.encode_batch(texts)
    assert found.items.ids.tolist() == [number for e in wanted for number in e.ids]
    assert found.items.lengths.tolist() == [len(e) for e in wanted]
    assert found.truncated.tolist() == [bool(e.overflowing) for e in wanted]


def test_chunks_are_the_reference_s_whichever_library_counts(
    file: Path, trial: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [" ".join(f"Line {n} of a red kettle, {word}." for n in range(60)) for word in ("spade", "thé", "[SEP]")]
    texts = [long[0], "short", *long, long[0].replace(". ", ".\n")]
    tokenizer = OurTokenizer(open_model(MINILM), max_tokens=64, overflow="chunk", chunk_overlap=8)
    wanted = tokenizer(texts)
    trial.remembers = True
    encoding._faster_of.cache_clear()
    counted: list[int] = []
    tokenizer = OurTokenizer(open_model(MINILM), max_tokens=64, overflow="chunk", chunk_overlap=8)
    counter = tokenizer._encoder.counter()
    assert counter is not None
    monkeypatch.setattr(
        tokenizer._encoder, "counter", lambda: (lambda t: counted.append(1) or counter[0](t), counter[1])
    )
    found = tokenizer(texts)
    assert counted
    assert (found.items.ids.tolist(), found.units.tolist()) == (wanted.items.ids.tolist(), wanted.units.tolist())


def test_what_differs_at_the_edges_of_texts_counts_no_parts_of_them(backend: Tokenizer, file: Path) -> None:
    StandIn.finds, StandIn.remembers = Verdict(True, False, ((32, 127),)), True
    assert Encoder(backend, file).counter() is None
