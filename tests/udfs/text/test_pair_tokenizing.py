"""Pairs token by token against transformers' tokenizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.conftest import MINILM
from tests.cross_encoders import JOINS, make_cross_encoder
from tests.models import VOCABULARY, WORDS
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.model.token_types import reads_types
from udfs.text.pair_tokenizing import PairTokenizer, Truncation
from udfs.text.tokenizing import Tokenized

STRANGE = [*WORDS, "naïve", "日本語", "\n", "unbelievable", "12345", "\u200b", "👩‍🚀"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {
        join: make_cross_encoder(tmp_path_factory.mktemp("model"), kind=kind, join=join)
        for join, kind in zip(JOINS, ("Bert", "Roberta", "Roberta", "Roberta"), strict=True)
    }
    left = {"truncation_side": "left"}
    made["left"] = make_cross_encoder(tmp_path_factory.mktemp("model"), tokenizer=left)
    return {**made, "MiniLM": MINILM}


def _items(made: Tokenized) -> list[tuple[list[int], list[int]] | None]:
    """Ids and types of each pair; None where it has no item."""
    items, found = made.items, []
    types = np.zeros_like(items.ids) if items.type_ids is None else items.type_ids
    for first, stop in zip(made.units[:-1].tolist(), made.units[1:].tolist(), strict=True):
        where = slice(items.offsets[first], items.offsets[stop])
        found.append((items.ids[where].tolist(), types[where].tolist()) if stop > first else None)
    return found


def _by_transformers(tokenizer: Any, pair: tuple[str, str], **cut: Any) -> tuple[list[int], list[int]] | None:
    try:
        made = tokenizer(*pair, **cut)
    except Exception:  # noqa: BLE001 - it is the Rust library's, which has no kinds of them
        return None
    return made["input_ids"], made.get("token_type_ids", [0] * len(made["input_ids"]))


def _draw(count: int, words: list[str]) -> list[tuple[str, str]]:
    drawn = random.Random(5)
    return [
        tuple(" ".join(drawn.choices(words, k=drawn.choice([1, 3, 9, 40]))) for _ in range(2))  # type: ignore[misc]
        for _ in range(count)
    ]


@pytest.mark.parametrize("truncation", get_args(Truncation))
@pytest.mark.parametrize("model", [*JOINS, "left", "MiniLM"])
def test_pairs_are_tokenized_and_cut_as_by_transformers(models: dict[str, str], model: str, truncation: Any) -> None:
    words = [*STRANGE, "[SEP]"] if model == "MiniLM" else STRANGE  # to the others' own files it is no token
    files, pairs = open_model(models[model]), _draw(80, words)
    tokenizer = AutoTokenizer.from_pretrained(files.transformer)
    refused = 0
    for max_tokens in (12, 13, 40):
        made = PairTokenizer(files, max_tokens=max_tokens, overflow="truncate", truncation=truncation)
        items = _items(made(*zip(*pairs, strict=True)))
        expected = [_by_transformers(tokenizer, pair, truncation=truncation, max_length=max_tokens) for pair in pairs]
        assert items == expected
        refused += expected.count(None)
    assert (refused > 0) == (truncation != "longest_first")


def _tokenizer(model: str, **options: Any) -> Callable[[list[str], list[str]], Tokenized]:
    return PairTokenizer(open_model(model), **{"max_tokens": None, "overflow": "truncate", **options})


@given(
    st.lists(st.sampled_from(WORDS), max_size=30),
    st.lists(st.sampled_from(WORDS), max_size=30),
    st.integers(16, 40),
    st.sampled_from(["longest_first", "only_first", "only_second"]),
)
def test_chunks_hold_every_token_beside_the_whole_other_text(
    models: dict[str, str], first: list[str], second: list[str], max_tokens: int, truncation: Any
) -> None:
    made = _tokenizer(models["types"], max_tokens=max_tokens, overflow="chunk", truncation=truncation)
    tokenized = made([" ".join(first)], [" ".join(second)])
    items = tokenized.items
    assert tokenized.truncated.tolist() == [len(first) + len(second) + 3 > max_tokens]
    chunks = [items.ids[items.offsets[i] : items.offsets[i + 1]].tolist() for i in range(len(items))]
    sides = [(chunk[1 : chunk.index(3)], chunk[chunk.index(3) + 1 : -1]) for chunk in chunks]
    ids = [[VOCABULARY[word] for word in text] for text in (first, second)]
    if not tokenized.truncated[0]:
        assert sides == [tuple(ids)]
        return
    side = {"only_first": 0, "only_second": 1}.get(truncation, int(len(second) >= len(first)))
    if max_tokens - 3 - len(ids[1 - side]) < max_tokens // 8:
        assert not chunks
        return
    assert all(len(chunk) <= max_tokens for chunk in chunks)
    assert all(parts[1 - side] == ids[1 - side] for parts in sides)
    assert [token for parts in sides for token in parts[side]] == ids[side]


def test_what_stands_before_first_texts_stands_before_their_chunks(models: dict[str, str]) -> None:
    made = _tokenizer(models["types"], max_tokens=8, overflow="chunk", before="the ", lowercase=True)
    shown = _items(made(["RED blue tea soil", "red"], ["DOG", "cat dog lamp ball"]))
    the, red, blue, tea, soil, dog = (VOCABULARY[word] for word in ("the", "red", "blue", "tea", "soil", "dog"))
    assert shown[0] is not None
    assert shown[0][0] == [2, the, red, blue, tea, 3, dog, 3, 2, the, soil, 3, dog, 3]
    assert shown[1] is not None
    assert shown[1][0][:4] == [2, the, red, 3]


def test_chunks_of_a_pair_may_repeat_a_sentence(models: dict[str, str]) -> None:
    made = _tokenizer(models["types"], max_tokens=14, overflow="chunk", chunk_overlap=3, truncation="only_second")
    items = made(["tea"], ["red blue! tea soil! good book! dog cat! bad lamp! fine ball!"]).items
    firsts = [items.ids[start + 3] for start in items.offsets[:-1]]
    assert firsts == [VOCABULARY[word] for word in ("red", "good", "bad")]


def test_whether_two_texts_are_parted_is_told(models: dict[str, str]) -> None:
    made = {model: PairTokenizer(open_model(path), max_tokens=None, overflow="fail") for model, path in models.items()}
    told = {model: tokenizer.parts_texts for model, tokenizer in made.items()}
    assert told == {model: model != "nothing" for model in models}


def test_two_long_texts_are_cut_together(models: dict[str, str]) -> None:
    long = "red kettle. " * 4_000
    made = _tokenizer(models["types"], max_tokens=16)([long], [long])
    assert made.items.lengths.tolist() == [16]
    chunked = _tokenizer(models["types"], max_tokens=64, overflow="chunk")(["tea"], [long])
    assert (chunked.items.lengths - 4).sum() == 3 * 4_000


def test_a_tokenizer_that_writes_a_text_twice_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    path = make_cross_encoder(tmp_path)
    backend = Tokenizer.from_file(f"{path}/tokenizer.json")
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B $A", special_tokens=[])
    backend.save(f"{path}/tokenizer.json")
    with pytest.raises(ModelError, match="makes no pairs of two texts"):
        _tokenizer(path)


def test_no_pairs_make_no_items(models: dict[str, str]) -> None:
    made = _tokenizer(models["types"])([], [])
    assert (len(made.items), made.units.tolist()) == (0, [0])


@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_classes_of_tokenizers_tell_types_as_transformers_does(tmp_path: Path, suffix: str) -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    wrong = {}
    for name in sorted({str(name).removesuffix("Fast") for name in TOKENIZER_MAPPING_NAMES.values() if name}):
        kind = tokenizer_class_from_name(name + suffix)
        if not hasattr(kind, "model_input_names"):
            continue
        open_model.cache_clear()
        path = tmp_path / name
        make = {"tokenizer_class": name + suffix, "model_input_names": None}
        files = open_model(_light(path, make))
        if reads_types(files) != ("token_type_ids" in kind.model_input_names):
            wrong[name] = kind.model_input_names
    assert wrong == {}


def _light(path: Path, tokenizer: dict[str, Any]) -> str:
    """A directory that is checked as a model, without one in it."""
    from tests.models import write_json

    write_json(path / "config.json", {"model_type": "bert"})
    write_json(path / "tokenizer_config.json", {key: value for key, value in tokenizer.items() if value is not None})
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors
    return str(path)
