"""The whole way of a window on tiny models: answers, their order, and what fails alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.conftest import MINILM
from tests.models import VOCABULARY, WORDS, make_classifier, make_encoder
from udfs.errors import EngineError, ModelError, UnsafeModelError
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.items import Items
from udfs.worker.answering import answer_texts
from udfs.worker.outputs import Outputs, Ticket
from udfs.worker.scoring import output_type, prepare, score, score_with


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def _spec(model: str, **options: Any) -> ScoreSpec:
    return make_spec(**{"task": "feature-extraction", "model": model, "precision": "float32", **options})


def _score(texts: list[str | None], spec: ScoreSpec) -> list[dict[str, Any]]:
    with LocalEngine(spec) as engine:
        results = list(score_with(engine, [pa.array(texts, pa.string())], spec))
    assert all(result.type == output_type(spec) for result in results)
    return [row for result in results for row in result.to_pylist()]


def _one_by_one(texts: list[str], model: str) -> np.ndarray:
    """Each text alone through the bare model: mean of the last states, divided by its norm."""
    tokenizer, bare = _bare(model)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=48, return_tensors="pt", padding=False)
            vector = bare(**ids).last_hidden_state[0].mean(0)
            vectors.append((vector / vector.norm()).numpy())
    return np.array(vectors)


@cache
def _bare(model: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()


PARTS = st.sampled_from([1, 60, 1 << 20])  # characters
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join), min_size=1, max_size=25)


@settings(max_examples=12, deadline=None)
@given(TEXTS, st.sampled_from([1, 7, 64, None]), st.sampled_from([1, 3, 8192]), st.booleans(), PARTS)
def test_answers_equal_one_at_a_time_whatever_the_order_duplicates_budgets_windows_and_parts(
    encoder: str, texts: list[str], budget: int | None, window_rows: int, dedupe: bool, part: int
) -> None:
    texts = [*texts, texts[0]]
    spec = _spec(encoder, max_batch_tokens=budget, window_rows=window_rows, dedupe=dedupe)
    with patch("udfs.worker.scoring._PART_CHARACTERS", part):
        rows = _score(texts, spec)
    got = np.array([row["embedding"] for row in rows])
    np.testing.assert_allclose(got, _one_by_one(texts, encoder), atol=2e-5)
    assert [row["truncated"] for row in rows] == [len(text.split()) > 46 for text in texts]


def test_rows_fail_alone_in_their_places(encoder: str) -> None:
    spec = _spec(encoder, max_tokens=8, overflow="fail", window_rows=4)
    texts = ["tea", None, "red " * 30, "  ", "soil", None, None, None, None, "tea"]
    rows = _score(texts, spec)
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == [None, "empty_input", "input_too_long", "empty_input", None, *["empty_input"] * 4, None]
    assert all((row["embedding"] is None) == (row["error"] is not None) for row in rows)
    assert [row["usage"]["input_tokens"] for row in rows] == [3, 0, 0, 0, 3, 0, 0, 0, 0, 3]
    assert [row["engine"] is not None for row in rows] == [code is None for code in codes]
    assert "red" not in rows[2]["error"]["message"]


@pytest.mark.parametrize("part", [1, 12, 1 << 20])
def test_rows_fail_alone_in_whichever_part(encoder: str, part: int) -> None:
    texts = ["tea", None, "red " * 30, "soil", "tea", "red tea", "red " * 30, "  "]
    with patch("udfs.worker.scoring._PART_CHARACTERS", part):
        rows = _score(texts, _spec(encoder, max_tokens=8, overflow="fail"))
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == [None, "empty_input", "input_too_long", None, None, None, "input_too_long", "empty_input"]
    assert [row["usage"]["input_tokens"] for row in rows] == [3, 0, 0, 3, 0, 4, 0, 0]
    assert rows[0]["embedding"] == rows[4]["embedding"]


def test_the_engine_has_the_next_parts_of_a_window_before_it_is_asked_for_the_first(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.worker.scoring._PART_CHARACTERS", 1)
    spec, told = _spec(encoder), list[str]()
    texts = [f"red {word}" for word in WORDS[:6]]
    with LocalEngine(spec) as engine:

        class Watched:
            def submit(self, items: Items) -> Ticket:
                told.append("sent")
                return engine.submit(items)

            def collect(self, ticket: Ticket) -> Outputs:
                told.append("asked for")
                return engine.collect(ticket)

        (result,) = score_with(Watched(), [pa.array(texts)], spec)
    assert told == [*["sent"] * 4, "asked for", "sent", "asked for", "sent", *["asked for"] * 4]
    got = np.array([row["embedding"] for row in result.to_pylist()])
    np.testing.assert_allclose(got, _one_by_one(texts, encoder), atol=2e-5)


def test_a_duplicate_costs_nothing_and_gets_the_same_answer(encoder: str) -> None:
    rows = _score(["tea", "soil", "tea"], _spec(encoder))
    assert [row["usage"]["input_tokens"] for row in rows] == [3, 3, 0]
    assert [row["usage"]["padded_tokens"] for row in rows] == [3, 3, 0]
    assert rows[0]["embedding"] == rows[2]["embedding"]


@pytest.mark.parametrize("texts", [[], [None], ["", None, " "]])
def test_nothing_to_score_is_fine(encoder: str, texts: list[str | None]) -> None:
    for options in ({}, {"task": "zero-shot-classification", "labels": ("tea", "soil")}):
        rows = _score(texts, _spec(encoder, **options))
        assert [row["error"]["code"] for row in rows] == ["empty_input"] * len(texts)


def test_an_empty_stream_yields_nothing(encoder: str) -> None:
    with LocalEngine(_spec(encoder)) as engine:
        assert list(score_with(engine, [], _spec(encoder))) == []
        assert list(score_with(engine, [pa.array([], pa.string())], _spec(encoder))) == []


def test_all_rows_too_long_have_no_scores(encoder: str) -> None:
    spec = _spec(encoder, task="zero-shot-classification", labels=("tea", "soil"), max_tokens=4, overflow="fail")
    (row,) = _score(["red red red red red"], spec)
    assert (row["error"]["code"], row["label"], row["scores"]) == ("input_too_long", None, None)


def test_an_output_that_is_not_finite_fails_its_row_alone(tmp_path: Path) -> None:
    path = make_encoder(tmp_path)
    weights = load_file(f"{path}/model.safetensors")
    weights["embeddings.word_embeddings.weight"][VOCABULARY["poison"]] = float("nan")
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    rows = _score(["red poison", "red tea", "poison", "red poison"], _spec(path))
    assert [row["error"] and row["error"]["code"] for row in rows] == ["not_finite", None, "not_finite", "not_finite"]
    assert np.isfinite(rows[1]["embedding"]).all()
    assert rows[0]["embedding"] is None


def test_a_template_is_rendered_before_texts_are_told_apart(encoder: str) -> None:
    spec = _spec(encoder, template="{{ a }} {{ b }}")
    window = pa.array([{"a": "red", "b": "tea"}, {"a": None, "b": None}, {"a": "red tea", "b": None}])
    with LocalEngine(spec) as engine:
        rows = [row for result in score_with(engine, [window], spec) for row in result.to_pylist()]
    alone = _one_by_one(["red tea"], encoder)[0]
    np.testing.assert_allclose(rows[0]["embedding"], alone, atol=2e-5)
    np.testing.assert_allclose(rows[2]["embedding"], alone, atol=2e-5)
    assert rows[1]["error"]["code"] == "empty_input"


def test_chunks_are_averaged_by_their_tokens(encoder: str) -> None:
    words = (WORDS * 3)[:70]
    (row,) = _score([" ".join(words)], _spec(encoder, overflow="chunk"))
    chunks = _one_by_one([" ".join(words[:46]), " ".join(words[46:])], encoder)
    expected = 48 * chunks[0] + 26 * chunks[1]
    np.testing.assert_allclose(row["embedding"], expected / np.linalg.norm(expected), atol=2e-5)
    assert row["usage"]["input_tokens"] == 48 + 26
    assert row["truncated"]


def test_outputs_that_do_not_match_their_items_are_an_error_not_a_wrong_answer(encoder: str) -> None:
    spec = _spec(encoder)
    task = make_task(spec, open_model(encoder))
    prepared = prepare(pa.array(["tea", "soil"]), spec, task)
    none = np.zeros(1, dtype=np.int32)
    one_short = Outputs(np.zeros((1, 32), dtype=np.float32), none, none, ["here"], none)
    with pytest.raises(EngineError, match="1 outputs for 2 items"):
        answer_texts(prepared.tokenized, one_short, task)


def test_a_model_that_does_not_load_raises_with_its_reason(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    save_file({"other": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks .* of the weights"):
        list(score([pa.array(["tea"])], _spec(str(path))))


def test_an_unsafe_model_is_refused_on_the_executor_too(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsafeModelError):
        list(score([pa.array(["tea"])], _spec(str(path))))


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("Bert", "mean"), ("Roberta", "cls"), ("DistilBert", "max"), ("ModernBert", "lasttoken"), ("MPNet", "mean")],
)
def test_embeddings_equal_sentence_transformers(tmp_path: Path, kind: str, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    path = make_encoder(tmp_path, kind=kind, pooling={"pooling_mode": pooling}, normalize=pooling != "max")
    texts = ["red kettle", "a good book about tea", "soil " * 60, "zebra!"]
    expected = SentenceTransformer(path, device="cpu").encode(texts)
    got = [row["embedding"] for row in _score(texts, _spec(path))]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def sentences() -> tuple[list[str], np.ndarray]:
    """Texts of all kinds, and what sentence-transformers makes of them with the real model."""
    from sentence_transformers import SentenceTransformer

    from jobs.bench.corpus import docstrings

    odd = ["👩‍👩‍👧 ünïcödé", "x" * 5000, "tea\n\ttea", ".", "[SEP] [PAD] [CLS]", "日本語の文章", "\u200b", "a\x00b"]
    texts = [*docstrings(48, first_line=True), *docstrings(8), *odd]
    model = SentenceTransformer(str(open_model(MINILM).root), device="cpu")
    return texts, model.encode(texts, normalize_embeddings=True)


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.998)])
def test_the_real_model_equals_sentence_transformers(
    precision: str, least: float, sentences: tuple[list[str], np.ndarray]
) -> None:
    texts, expected = sentences
    rows = _score(texts, _spec(MINILM, precision=precision))
    got = np.array([row["embedding"] for row in rows])
    cosines = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1)
    assert cosines.min() >= least
    assert {row["engine"].split("/")[1] for row in rows} == {precision}


def test_classifiers_score_with_the_same_loop(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["bad", "good"])
    rows = _score(["red tea", None, "red tea"], _spec(path, task="text-classification"))
    assert rows[0]["label"] == rows[2]["label"] == max(dict(rows[0]["scores"]), key=dict(rows[0]["scores"]).__getitem__)
    assert rows[1]["scores"] is None
