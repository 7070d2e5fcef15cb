from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.conftest import MINILM
from tests.models import make_classifier, make_encoder
from udfs.engine.probes import Probes
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.model.limits import resolve_max_tokens
from udfs.tasks.registry import make_spec, make_task


def _probes(model: str, **options: Any) -> Probes:
    spec = make_spec(**{"task": "feature-extraction", "model": model, **options})
    files = open_model(model)
    return Probes(make_task(spec, files), files, max_tokens=resolve_max_tokens(files, spec.max_tokens))


def test_probes_have_the_special_tokens_that_texts_have_in_use() -> None:
    items = _probes(MINILM).mixed()
    assert len(items) == 4
    assert (items.ids[items.offsets[:-1]] == 101).all()
    assert (items.ids[items.offsets[1:] - 1] == 102).all()


def test_probes_are_of_different_lengths_and_tokens() -> None:
    items = _probes(MINILM).mixed()
    assert len(set(items.lengths.tolist())) == 4
    assert len(set(items.ids.tolist())) > 20


@pytest.mark.parametrize("tokens", [1, 5, 20, 128, 200])
def test_probes_are_about_as_long_as_was_asked(tokens: int) -> None:
    items = _probes(MINILM).of_length(tokens)
    assert items.lengths.max() <= max(1.05 * tokens, 3)
    assert items.lengths.mean() >= 0.7 * tokens
    assert (np.diff(items.lengths) <= 0).all()


def test_a_batch_of_probes_has_about_so_many_tokens() -> None:
    assert len(_probes(MINILM).fill(4096, length=128).ids) == pytest.approx(4096, rel=0.05)


@pytest.mark.parametrize("overflow", ["truncate", "fail", "chunk"])
def test_probes_are_never_longer_than_items_may_be(tmp_path: Path, overflow: str) -> None:
    probes = _probes(make_encoder(tmp_path), max_tokens=9, overflow=overflow)
    for items in (probes.mixed(), probes.of_length(128), probes.fill(500, length=128)):
        assert 1 <= items.lengths.min() <= items.lengths.max() <= 9


def test_probes_of_a_task_with_pairs_are_pairs(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["contradiction", "entailment"])
    labels = tuple(f"tea {i}" for i in range(30))
    items = _probes(path, task="zero-shot-classification", labels=labels).mixed()
    assert (np.add.reduceat(items.ids == 3, items.offsets[:-1]) == 2).all()
    assert items.type_ids is not None


def _save_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    """One that knows these letters, and nothing of others."""
    Tokenizer(models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))


def test_a_tokenizer_that_knows_no_word_is_tried_with_its_own(tmp_path: Path) -> None:
    path = make_encoder(tmp_path)
    _save_tokenizer(tmp_path, {"ⓐ": 5, "ⓑ": 6})
    assert set(_probes(path).of_length(8).ids.tolist()) == {5, 6}


def test_a_tokenizer_that_makes_nothing_of_any_text_is_refused(tmp_path: Path) -> None:
    path = make_encoder(tmp_path)
    _save_tokenizer(tmp_path, {})
    with pytest.raises(ModelError, match="makes no tokens of any text"):
        _probes(path).mixed()


def test_no_probe_has_a_token_that_the_model_does_not_know(tmp_path: Path) -> None:
    path = make_encoder(tmp_path)
    _save_tokenizer(tmp_path, {"e": 5, "駅": 999})
    spec, files = make_spec(task="feature-extraction", model=path), open_model(path)
    probes = Probes(make_task(spec, files), files, max_tokens=48, vocabulary=99)
    assert set(probes.of_length(4).ids.tolist()) == {5}
