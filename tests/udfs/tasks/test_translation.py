"""What translators read: the language before the text, and the token that an answer is forced to begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.writers import make_translator
from udfs.errors import SpecError
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.tasks.translation import Translation

LANGUAGES = {"marian": (None, "de"), "m2m": ("en", "de"), "nllb": ("eng_Latn", "deu_Latn"), "mbart": ("en_XX", "de_DE")}
OTHERS = {"marian": "fr", "m2m": "fr", "nllb": "fra_Latn", "mbart": "fr_XX"}
TEXT = "the red kettle"


@pytest.fixture(scope="module", params=LANGUAGES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, make_translator(tmp_path_factory.mktemp(request.param), request.param)


def _task(model: str, source: str | None, target: str | tuple[str, ...] | None, max_tokens: int = 40) -> Translation:
    spec = make_spec(task="translation", model=model, source_lang=source, target_lang=target, max_tokens=max_tokens)
    task = make_task(spec, open_model(model))
    assert isinstance(task, Translation)
    return task


def test_a_translator_reads_what_its_own_tokenizer_makes_of_a_text(family: tuple[str, str]) -> None:
    name, model = family
    source, target = LANGUAGES[name]
    items = _task(model, source, target).tokenize([TEXT]).items
    tokenizer = AutoTokenizer.from_pretrained(model, **({"src_lang": source} if source else {}))
    expected = tokenizer(f">>de<< {TEXT}" if name == "marian" else TEXT).input_ids
    assert items.ids[: len(expected)].tolist() == expected
    forced = items.ids[len(expected) :].tolist()
    if name == "marian":
        assert (forced, items.type_ids) == ([], None)
    else:
        token = f"__{target}__" if name == "m2m" else target
        assert forced == [tokenizer.convert_tokens_to_ids(token)]
        assert items.type_ids is not None
        assert items.type_ids.tolist() == [0] * len(expected) + [1]


def test_a_long_text_is_cut_before_the_tokens_that_end_it(family: tuple[str, str]) -> None:
    name, model = family
    task = _task(model, *LANGUAGES[name], max_tokens=8)
    made = task.tokenize([TEXT, TEXT * 5])
    assert made.truncated.tolist() == [True, True]
    forced = 0 if name == "marian" else 1
    encoder = made.items.lengths - forced
    assert (encoder <= 8).all()
    whole = _task(model, *LANGUAGES[name]).tokenize([TEXT]).items.ids
    assert made.items.ids[int(encoder[0]) - 1] == whole[len(whole) - 1 - forced]


@pytest.mark.parametrize("max_tokens", [8, 40])
def test_each_of_several_languages_is_asked_for_as_if_it_were_alone(family: tuple[str, str], max_tokens: int) -> None:
    name, model = family
    source, target = LANGUAGES[name]
    other = OTHERS[name]
    several = _task(model, source, (str(target), other), max_tokens).tokenize([TEXT, TEXT * 2]).items
    alone = [_task(model, source, one, max_tokens).tokenize([TEXT, TEXT * 2]).items for one in (target, other)]
    found, expected = (np.split(items.ids, items.offsets[1:-1]) for items in (several, alone[0]))
    assert [ids.tolist() for ids in found[::2]] == [ids.tolist() for ids in expected]
    assert [ids.tolist() for ids in found[1::2]] == [i.tolist() for i in np.split(alone[1].ids, alone[1].offsets[1:-1])]


def test_a_language_that_the_model_does_not_know_is_told_with_some_that_it_does(family: tuple[str, str]) -> None:
    name, model = family
    source, _ = LANGUAGES[name]
    with pytest.raises(SpecError, match=r"target_lang is 'xq', which is no language for model .*; there are "):
        _task(model, source, "xq")
    with pytest.raises(SpecError, match="target_lang"):
        _task(model, source, None)


def test_a_marian_of_one_pair_needs_no_language(tmp_path: Path) -> None:
    model = make_translator(tmp_path, "marian")
    path = tmp_path / "vocab.json"
    path.write_text(path.read_text().replace(">>", "((").replace("<<", "))"))
    task = _task(model, None, None)
    assert task.show(task.tokenize([TEXT]).items)[0].startswith("the red")
