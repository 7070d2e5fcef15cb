from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import MINILM
from udfs.model.files import open_model
from udfs.text import encoding
from udfs.text.encoding import Encoder, by_reference
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


def _taken(encoder: Encoder) -> Encoder:
    """Its trial has come to an end."""
    assert encoder._trial is not None
    encoder._trial.join()
    return encoder


def test_ids_are_the_reference_s_in_the_order_of_the_texts_whichever_library_makes_them(
    backend: Tokenizer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(encoding, "hold_to_reference", lambda _: ASCII)
    monkeypatch.setattr(encoding, "_WORTHWHILE", 0)
    by_fast = encoding.by_fast
    monkeypatch.setattr(encoding, "by_fast", lambda fast, texts: seen.extend(texts) or by_fast(fast, texts))
    encoder = Encoder(backend, file)
    encoder(["tea"])
    found, wanted = _taken(encoder)(TEXTS), by_reference(backend, TEXTS)
    assert encoder.name == "tokie"
    assert set(seen) >= {"a red kettle", "x" * 300, "spade"}
    assert not {"thé", "tea [SEP] tea", "[sep]", "tea\x13"} & {*seen}
    assert (found.ids.tolist(), found.offsets.tolist()) == (wanted.ids.tolist(), wanted.offsets.tolist())
    assert found.ids.dtype == np.int32


def test_the_libraries_are_compared_once_it_is_worthwhile_and_meanwhile_the_reference_goes_on(
    backend: Tokenizer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "hold_to_reference", lambda _: ASCII)
    monkeypatch.setattr(encoding, "_WORTHWHILE", 10)
    encoder = Encoder(backend, file)
    encoder(["a red kettle"])
    encoder(["a red kettle, a spade, and one more of each"])
    assert encoder._trial is None
    encoder(["tea"])
    assert _taken(encoder).name == "tokie"


@pytest.mark.parametrize("told", [None, Verdict(equal=False), RuntimeError("no such kind")])
def test_without_a_proof_the_reference_is_used(
    told: Verdict | RuntimeError | None, backend: Tokenizer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold(_: Path) -> Verdict | None:
        if isinstance(told, RuntimeError):
            raise told
        return told

    monkeypatch.setattr(encoding, "hold_to_reference", hold)
    monkeypatch.setattr(encoding, "_WORTHWHILE", 0)
    encoder = Encoder(backend, file)
    encoder(["tea"])
    assert _taken(encoder).name == "tokenizers"
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
