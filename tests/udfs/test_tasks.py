"""Each task against the library whose answers it must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.conftest import MINILM
from tests.models import make_classifier, make_encoder
from udfs.engine.local import LocalEngine
from udfs.errors import ModelError, SpecError
from udfs.models import open_model
from udfs.scoring import score_with
from udfs.spec import ScoreSpec
from udfs.tasks import make_task

TEXTS = ["a good red kettle", "soil", "the tea is not very good, a bad book about a cat"]


def _score(texts: list[str], **options: Any) -> list[dict[str, Any]]:
    spec = ScoreSpec(**{"precision": "float32", **options})
    with LocalEngine(spec) as engine:
        return [row for result in score_with(engine, [pa.array(texts)], spec) for row in result.to_pylist()]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (["bad", "fine", "good"], None),
        (["bad", "fine", "good"], "single_label_classification"),
        (["bad", "fine", "good"], "multi_label_classification"),
        (["value"], "regression"),
        (["yes"], None),
    ],
)
def test_text_classification_equals_the_pipeline(
    tmp_path: Path, kind: str, labels: list[str], problem_type: str | None
) -> None:
    from transformers import pipeline

    path = make_classifier(tmp_path, labels, kind=kind, problem_type=problem_type)
    expected = pipeline("text-classification", path, device="cpu")(TEXTS, top_k=None)
    for row, found in zip(_score(TEXTS, task="text-classification", model=path), expected, strict=True):
        scores = dict(row["scores"])
        assert scores == pytest.approx({f["label"]: f["score"] for f in found}, abs=1e-4)
        assert row["score"] == pytest.approx(max(scores.values()))
        assert scores[row["label"]] == row["score"]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize("labels", [("red", "tea", "a good book"), ("tea",)])
def test_zero_shot_by_entailment_equals_the_pipeline(
    tmp_path: Path, kind: str, multi_label: bool, labels: tuple[str, ...]
) -> None:
    from transformers import pipeline

    path = make_classifier(tmp_path, ["contradiction", "neutral", "entailment"], kind=kind)
    made = pipeline("zero-shot-classification", path, device="cpu")
    expected = made(TEXTS, candidate_labels=list(labels), multi_label=multi_label, hypothesis_template="This is {}.")
    options = {"multi_label": multi_label, "hypothesis_template": "This is {}.", "labels": labels}
    rows = _score(TEXTS, task="zero-shot-classification", model=path, **options)
    for row, found in zip(rows, expected, strict=True):
        assert dict(row["scores"]) == pytest.approx(dict(zip(found["labels"], found["scores"], strict=True)), abs=1e-4)
        assert row["label"] == found["labels"][0]


def test_zero_shot_by_similarity_finds_the_label_and_its_scores_sum_to_one() -> None:
    texts = ["a frying pan of cast iron", "a wireless keyboard", "food for puppies"]
    labels = ("electronics", "pets", "kitchen")
    rows = _score(
        texts, task="zero-shot-classification", model=MINILM, labels=labels, hypothesis_template="shop for {}"
    )
    assert [row["label"] for row in rows] == ["kitchen", "electronics", "pets"]
    assert all(sum(dict(row["scores"]).values()) == pytest.approx(1, abs=1e-4) for row in rows)
    apart = _score(texts, task="zero-shot-classification", model=MINILM, labels=labels, multi_label=True)
    assert all(0 <= score <= 1 for row in apart for score in dict(row["scores"]).values())


def test_a_model_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no classification head"):
        _score(TEXTS, task="text-classification", model=make_encoder(tmp_path))


def test_a_head_without_weights_is_refused_not_made_up(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    config = (path / "config.json").read_text().replace('"BertModel"', '"BertForSequenceClassification"')
    (path / "config.json").write_text(config)
    (path / "modules.json").unlink()
    with pytest.raises(ModelError, match="saved for another task"):
        _score(TEXTS, task="text-classification", model=str(path))


def test_zero_shot_needs_a_model_that_knows_entailment(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NLI model"):
        _score(TEXTS, task="zero-shot-classification", model=make_classifier(tmp_path, ["bad", "good"]), labels=("a",))


def test_a_label_that_leaves_no_room_for_a_text_is_told(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["contradiction", "entailment"])
    spec = ScoreSpec(task="zero-shot-classification", model=path, labels=("tea " * 20,), max_tokens=16)
    with pytest.raises(ModelError, match="no room for a text"):
        make_task(spec, open_model(path)).tokenize(["tea"])


def test_a_label_longer_than_max_tokens_moves_no_other_label(tmp_path: Path) -> None:
    options = {"task": "zero-shot-classification", "model": make_encoder(tmp_path), "max_tokens": 6}
    labels = ("red " * 6, "tea", "soil")
    try:
        rows = _score(["tea", "soil"], labels=labels, overflow="chunk", **options)
    except ModelError:
        return  # refusing it is fine, as `overflow: fail` does
    assert [row["label"] for row in rows] == ["tea", "soil"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "zero-shot-classification", "labels": "kitchen"}, "one string"),
        ({"task": "zero-shot-classification", "labels": ("a", "a")}, "more than once"),
        ({"task": "zero-shot-classification", "labels": (" ",)}, "blank"),
        ({"task": "zero-shot-classification", "labels": ("a",), "hypothesis_template": "about"}, "needs a {}"),
        ({"task": "sumarization"}, "choose one of"),
        ({"window_rows": 0}, "window_rows is 0"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        ScoreSpec(**{"task": "feature-extraction", "model": "m", **options})
