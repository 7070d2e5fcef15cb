"""Each task against the library whose answers it must equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MINILM
from tests.models import VOCABULARY, WORDS, make_classifier, make_encoder, make_tagger, write_json
from udfs.errors import ModelError, SpecError
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.tasks.text_classification import check_head_fits
from udfs.worker.scoring import score_with

TEXTS = ["a good red kettle", "soil", "the tea is not very good, a bad book about a cat"]


def _score(texts: list[str], **options: Any) -> list[dict[str, Any]]:
    spec = make_spec(**{"precision": "float32", "max_batch_tokens": 512, **options})
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


CHUNKS = ["red tea is good!", "the soil is a bad dog!", "blue book!"]


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_scores_of_chunks_are_averaged_or_the_largest(tmp_path: Path, problem_type: str) -> None:
    path = make_classifier(tmp_path, ["bad", "fine"], problem_type=problem_type)
    options = {"task": "text-classification", "model": path, "max_tokens": 9}
    alone = np.array([list(dict(row["scores"]).values()) for row in _score(CHUNKS, **options)])
    mean, largest = (
        list(dict(_score([" ".join(CHUNKS)], overflow="chunk", chunk_pooling=how, **options)[0]["scores"]).values())
        for how in ("mean", "max")
    )
    assert mean == pytest.approx(np.average(alone, axis=0, weights=[7, 9, 5]), abs=1e-5)
    assert largest == pytest.approx(alone.max(axis=0), abs=1e-5)


def test_entailment_is_found_in_one_chunk_of_many(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["contradiction", "neutral", "entailment"])
    options = {"task": "zero-shot-classification", "model": path, "labels": ("tea", "a dog"), "multi_label": True}
    options |= {"max_tokens": 13, "hypothesis_template": "{}."}
    alone = np.array([list(dict(row["scores"]).values()) for row in _score(CHUNKS, **options)])
    (row,) = _score([" ".join(CHUNKS)], overflow="chunk", chunk_pooling="max", **options)
    assert list(dict(row["scores"]).values()) == pytest.approx(alone.max(axis=0), abs=1e-5)
    assert row["truncated"]


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
    spec = make_spec(task="zero-shot-classification", model=path, labels=("tea " * 20,), max_tokens=16)
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
        ({"aggregation_strategy": "simple"}, "belongs to token-classification"),
        ({"task": "token-classification", "aggregation_strategy": "last"}, "choose one of"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make_spec(**{"task": "feature-extraction", "model": "m", **options})


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
NAMED = [*TEXTS, "Red kettles, zzz-books (garden) 19:30!", "teaish 日本 doggarden", "tea"]


@pytest.mark.parametrize(
    ("kind", "aggregation"),
    [("Bert", strategy) for strategy in ("none", "simple", "first", "average", "max")]
    + [("Roberta", "simple"), ("DistilBert", "max"), ("ModernBert", "average"), ("DebertaV2", "first")],
)
def test_token_classification_equals_the_pipeline(tmp_path: Path, kind: str, aggregation: str) -> None:
    from transformers import pipeline

    path = make_tagger(tmp_path, LABELS, kind=kind)
    expected = pipeline("token-classification", path, device="cpu", aggregation_strategy=aggregation)(NAMED)
    rows = _score(NAMED, task="token-classification", model=path, aggregation_strategy=aggregation)
    assert any(expected)
    for row, found in zip(rows, expected, strict=True):
        assert [_without_score(e) for e in row["entities"]] == [_without_score(e) for e in found]
        assert [e["score"] for e in row["entities"]] == pytest.approx([e["score"] for e in found], abs=1e-4)


def _without_score(entity: dict[str, Any]) -> tuple[Any, ...]:
    return entity.get("entity_group", entity.get("entity")), entity["start"], entity["end"], entity["word"]


def test_entities_of_a_tokenizer_without_marks_equal_the_pipelines(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import pipeline

    path = make_tagger(tmp_path, LABELS, kind="Roberta")
    pieces = [(f"▁{word}", -1.0) for word in WORDS] + [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz.,"]
    made = Tokenizer(models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), *pieces], unk_id=1))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.save(f"{path}/tokenizer.json")
    for aggregation in ("simple", "first", "average", "max"):
        expected = pipeline("token-classification", path, device="cpu", aggregation_strategy=aggregation)(TEXTS)
        rows = _score(TEXTS, task="token-classification", model=path, aggregation_strategy=aggregation)
        for row, found in zip(rows, expected, strict=True):
            assert [_without_score(e) for e in row["entities"]] == [_without_score(e) for e in found]


def test_entities_of_chunks_are_found_where_they_stand(tmp_path: Path) -> None:
    path = make_tagger(tmp_path, LABELS)
    text = "a good red kettle is a very bad book about the garden of a cat"
    (row,) = _score([text], task="token-classification", model=path, max_tokens=8, overflow="chunk")
    assert row["truncated"]
    assert row["entities"][-1]["end"] > 45
    assert [e["start"] for e in row["entities"]] == sorted(e["start"] for e in row["entities"])
    assert all(text[e["start"] : e["end"]].replace(" ", "") == e["word"].replace(" ", "") for e in row["entities"])


def test_entities_fail_and_are_empty_row_by_row(tmp_path: Path) -> None:
    path = make_tagger(tmp_path, ["O", "PER"])
    weights = load_file(f"{path}/model.safetensors")
    weights["classifier.bias"] = torch.tensor([1e4, -1e4])
    weights["bert.embeddings.word_embeddings.weight"][VOCABULARY["poison"]] = float("nan")
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    texts = ["tea", "red poison", "soil and tea", "red " * 30, " "]
    rows = _score(texts, task="token-classification", model=path, max_tokens=8, overflow="fail")
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == [None, "not_finite", None, "input_too_long", "empty_input"]
    assert [row["entities"] for row in rows] == [[], None, [], None, None]


def test_a_model_that_labels_no_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="labels no tokens"):
        _score(TEXTS, task="token-classification", model=make_classifier(tmp_path, ["a", "b"]))


@pytest.mark.parametrize("task", ["text-classification", "zero-shot-classification"])
@pytest.mark.parametrize("labels", [{0: "entailment", 1: "b", 2: "b"}, {0: None, 1: None, 2: "entailment"}])
def test_two_labels_of_one_name_are_refused_with_their_numbers(task: str, labels: Any, tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["entailment", "b", "c"])
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", config | {"id2label": labels})
    given = {"labels": ["x"]} if task.startswith("zero") else {}
    with pytest.raises(ModelError, match=r"twice, as . and . of id2label"):
        make_task(make_spec(task, path, **given), open_model(path))


def test_tokens_of_two_labels_of_one_name_are_one_entity(tmp_path: Path) -> None:
    path = make_tagger(tmp_path, ["PER", "PER"])
    (row,) = _score(["red kettle"], task="token-classification", model=path)
    assert [(found["entity"], found["word"]) for found in row["entities"]] == [("PER", "red kettle")]


@pytest.mark.parametrize("told", [{"1": "a", "2": "b"}, {"0": "a", "2": "b"}, {"x": "a", "y": "b"}])
def test_labels_that_are_not_numbered_from_zero_are_refused(told: dict[str, str], tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["a", "b"])
    write_json(tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text()) | {"id2label": told})
    with pytest.raises(ModelError, match="number them from 0 on"):
        make_task(make_spec("text-classification", path), open_model(path))


@pytest.mark.parametrize(("make", "task"), [(make_classifier, "text"), (make_tagger, "token")])
@pytest.mark.parametrize("count", [2, 5])
def test_a_head_of_another_number_of_labels_is_refused_by_its_shape(
    make: Any, task: str, count: int, tmp_path: Path
) -> None:
    path, spec = make(tmp_path, ["a", "b", "c"]), make_spec(f"{task}-classification", str(tmp_path))
    check_head_fits(spec, open_model(path))
    told = {"id2label": {str(i): f"l{i}" for i in range(count)}}
    write_json(tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text()) | told)
    open_model.cache_clear()
    with pytest.raises(ModelError, match=f"has {count} labels by its config"):
        check_head_fits(spec, open_model(path))
    check_head_fits(make_spec("feature-extraction", path), open_model(path))
