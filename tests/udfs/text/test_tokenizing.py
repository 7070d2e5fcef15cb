from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import VOCABULARY, WORDS, make_encoder
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.text.tokenizing import Tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def _ids(text: str) -> list[int]:
    return [2, *(VOCABULARY[word] for word in text.split()), 3]


def test_texts_become_ragged_ids_whatever_padding_the_model_asks_for(encoder: str) -> None:
    tokenized = Tokenizer(open_model(encoder), max_tokens=None, overflow="truncate")(["red kettle", "tea"])
    items = tokenized.items
    assert items.ids.tolist() == [*_ids("red kettle"), *_ids("tea")]
    assert items.offsets.tolist() == [0, 4, 7]
    assert tokenized.units.tolist() == [0, 1, 2]
    assert items.type_ids is None


def test_a_longer_text_is_cut_read_in_chunks_or_has_no_item(encoder: str) -> None:
    texts = ["red " * 10, "tea"]
    cut, chunked, failed = (
        Tokenizer(open_model(encoder), max_tokens=6, overflow=overflow)(texts)  # type: ignore[arg-type]
        for overflow in ("truncate", "chunk", "fail")
    )
    assert all(t.truncated.tolist() == [True, False] for t in (cut, chunked, failed))
    assert cut.items.lengths.tolist() == [6, 3]
    assert chunked.items.lengths.tolist() == [6, 6, 4, 3]
    assert chunked.units.tolist() == [0, 3, 4]
    assert failed.items.lengths.tolist() == [3]
    assert failed.units.tolist() == [0, 0, 1]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=30), max_size=6), st.integers(3, 40))
def test_chunks_hold_every_token_in_order(encoder: str, texts: list[list[str]], max_tokens: int) -> None:
    tokenizer = Tokenizer(open_model(encoder), max_tokens=max_tokens, overflow="chunk")
    tokenized = tokenizer([" ".join(words) for words in texts])
    items = tokenized.items
    for words, first, stop in zip(texts, tokenized.units[:-1], tokenized.units[1:], strict=True):
        chunks = [items.ids[items.offsets[i] : items.offsets[i + 1]].tolist() for i in range(first, stop)]
        assert all(len(chunk) <= max_tokens and (chunk[0], chunk[-1]) == (2, 3) for chunk in chunks)
        assert [token for chunk in chunks for token in chunk[1:-1]] == [VOCABULARY[word] for word in words]
    assert tokenized.truncated.tolist() == [len(words) > max_tokens - 2 for words in texts]


def test_of_a_pair_only_the_first_text_is_cut(encoder: str) -> None:
    tokenizer = Tokenizer(open_model(encoder), max_tokens=8, overflow="truncate")
    items = tokenizer(["red " * 10, "tea"], ["a good book"]).items
    assert items.ids[:8].tolist() == [2, *[VOCABULARY["red"]] * 2, 3, *_ids("a good book")[1:]]
    assert items.type_ids is not None
    assert items.type_ids[:8].tolist() == [0] * 4 + [1] * 4
    assert tokenizer.count_pairs("", ["a good book", "tea"]).tolist() == [6, 4]


def test_each_text_is_read_with_each_second_text_in_the_same_chunks(encoder: str) -> None:
    tokenizer = Tokenizer(open_model(encoder), max_tokens=10, overflow="chunk")
    tokenized = tokenizer(["red " * 8, "tea", "soil " * 5], ["a good book", "tea"])
    assert tokenized.units.tolist() == [0, 2, 4, 5, 6, 8, 10]
    assert tokenized.truncated.tolist() == [True, True, False, False, True, False]
    assert tokenized.items.lengths.tolist() == [10, 10, 8, 8, 7, 5, 10, 7, 8, 5]
    assert tokenized.items.ids[:10].tolist() == [*_ids("red red red red"), *_ids("a good book")[1:]]


def test_what_stands_before_a_text_stands_before_each_of_its_chunks(encoder: str) -> None:
    tokenizer = Tokenizer(open_model(encoder), max_tokens=6, overflow="chunk", before="the ")
    items = tokenizer(["red blue tea soil"]).items
    assert items.ids.tolist() == [*_ids("the red blue tea"), *_ids("the soil")]


def test_chunks_end_where_sentences_do_and_may_repeat_one(encoder: str) -> None:
    text = "red blue! tea soil! good book!"
    apart, twice = (
        Tokenizer(open_model(encoder), max_tokens=10, overflow="chunk", chunk_overlap=overlap)([text]).items
        for overlap in (0, 4)
    )
    end = VOCABULARY["!"]
    assert [i for i in apart.ids.tolist() if i > 3][-3:] == [VOCABULARY["good"], VOCABULARY["book"], end]
    assert apart.lengths.tolist() == [8, 5]
    assert twice.lengths.tolist() == [8, 8]


def test_spans_of_chunks_are_places_in_the_text(encoder: str) -> None:
    text = "red blue. tea soil. good book."
    spans = Tokenizer(open_model(encoder), max_tokens=8, overflow="chunk", with_spans=True)([text]).spans
    assert spans is not None
    told = zip(spans.start.tolist(), spans.end.tolist(), strict=True)
    assert " ".join(text[start:end] for start, end in told if end > start) == "red blue . tea soil . good book ."


def test_a_text_of_a_megabyte_is_read_in_chunks(encoder: str) -> None:
    tokenized = Tokenizer(open_model(encoder), max_tokens=60, overflow="chunk")(["red kettle. " * 80_000])
    assert tokenized.items.lengths.max() <= 60
    assert (tokenized.items.lengths - 2).sum() == 3 * 80_000


def test_no_texts_make_no_items(encoder: str) -> None:
    tokenized = Tokenizer(open_model(encoder), max_tokens=None, overflow="truncate")([])
    assert len(tokenized.items) == 0
    assert tokenized.units.tolist() == [0]


def test_a_model_that_keeps_the_end_of_a_text_keeps_it(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    items = Tokenizer(open_model(str(path)), max_tokens=4, overflow="truncate")(["red blue tea soil"]).items
    assert items.ids.tolist() == _ids("tea soil")


def test_an_old_model_without_a_fast_tokenizer_gets_one_made_of_its_vocabulary(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path / "old"))
    (path / "tokenizer.json").unlink()
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (path / "vocab.txt").write_text("\n".join(sorted(VOCABULARY, key=VOCABULARY.__getitem__)))
    items = Tokenizer(open_model(str(path)), max_tokens=None, overflow="truncate")(["red kettle"]).items
    assert items.ids.tolist() == _ids("red kettle")
    (path / "vocab.txt").unlink()
    (path / "tokenizer_config.json").unlink()
    open_model.cache_clear()
    with pytest.raises(ModelError, match="has no tokenizer"):
        Tokenizer(open_model(str(path)), max_tokens=None, overflow="truncate")


def test_lowercasing_is_done_where_the_model_asks(encoder: str) -> None:
    made = Tokenizer(open_model(encoder), max_tokens=None, overflow="truncate", lowercase=True)(["RED"])
    assert np.array_equal(made.items.ids, _ids("red"))
