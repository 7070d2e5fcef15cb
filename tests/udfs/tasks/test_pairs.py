"""Pairs of texts against `CrossEncoder.predict`, and what becomes of those that are empty, identical or too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.cross_encoders import make_cross_encoder
from tests.models import make_encoder, make_tagger, write_json
from udfs.engine.budget import Budget
from udfs.engine.model import Model
from udfs.errors import ModelError, SpecError
from udfs.local import LocalEngine
from udfs.tasks.registry import KINDS, make_spec
from udfs.tasks.text_classification import check_ranks
from udfs.worker.scoring import score_with

PAIRS = [
    ("a good red kettle", "the kettle is red"),
    ("soil", "a very bad book about a cat, not about soil"),
    ("is the tea fine?", "tea"),
    ("a good red kettle", "the dog is in the garden. " * 12),
    ("the dog is in the garden. " * 12, "red"),
]
KINDS_OF_PAIRS = [
    ("Bert", "types"),
    ("Electra", "types"),
    ("DebertaV2", "types"),
    ("Roberta", "two separators"),
    ("XLMRoberta", "two separators"),
    ("ModernBert", "one separator"),
    ("DistilBert", "one separator"),
    ("Mistral", "nothing"),
]
NLI = ("contradiction", "neutral", "entailment")


def _struct(pairs: list[tuple[Any, Any]]) -> pa.StructArray:
    queries, documents = ([pair[i] for pair in pairs] for i in (0, 1))
    return pa.StructArray.from_arrays(
        [pa.array(queries, pa.string()), pa.array(documents, pa.string())], ["query", "document"]
    )


def _score(pairs: list[tuple[Any, Any]], *, packed: bool = True, **options: Any) -> list[dict[str, Any]]:
    asked = {"task": "text-classification", "template": "query", "text_pair": "document", "precision": "float32"}
    spec = make_spec(**{**asked, "max_batch_tokens": 512, **options})
    model = None if packed else Model(spec, packed=False)
    budget = None if packed else Budget(512, 384)
    with LocalEngine(spec, model=model, budget=budget) as engine:
        return [row for result in score_with(engine, [_struct(pairs)], spec) for row in result.to_pylist()]


def _scores(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[score for _, score in row["scores"]] for row in rows])


def _predict(path: str, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    found = CrossEncoder(path, device="cpu", local_files_only=True, **options).predict(pairs)
    return found.reshape(len(pairs), -1)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("labels", [("LABEL_0",), NLI], ids=["one label", "NLI"])
@pytest.mark.parametrize(("kind", "join"), KINDS_OF_PAIRS, ids=[kind for kind, _ in KINDS_OF_PAIRS])
def test_scores_of_pairs_equal_those_of_a_cross_encoder(
    tmp_path: Path, kind: str, join: str, labels: tuple[str, ...], packed: bool
) -> None:
    more = {"DebertaV2": {"type_vocab_size": 2}, "Mistral": {"num_key_value_heads": 4}}.get(kind, {})
    path = make_cross_encoder(tmp_path, labels, kind=kind, join=join, **more)
    rows = _score(PAIRS, model=path, packed=packed)
    assert _scores(rows) == pytest.approx(_predict(path, PAIRS), abs=1e-4)
    assert [row["truncated"] for row in rows] == [False, False, False, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("kind", "join"), KINDS_OF_PAIRS[:2] + KINDS_OF_PAIRS[3:6])
def test_scores_of_pairs_on_a_gpu_are_near_those_of_a_cross_encoder(
    tmp_path: Path, kind: str, join: str, packed: bool
) -> None:
    """A random model is rounded far: about as far as transformers' own is."""
    path = make_cross_encoder(tmp_path, NLI, kind=kind, join=join)
    logits = _predict(path, PAIRS)
    rounded = _predict(path, PAIRS, model_kwargs={"dtype": torch.bfloat16})
    found = _scores(_score(PAIRS, model=path, packed=packed, precision="bfloat16"))
    assert np.linalg.norm(found - logits) < 2 * np.linalg.norm(rounded - logits)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"tokenizer_class": "BertTokenizer", "model_input_names": None},
        {"tokenizer_class": "ElectraTokenizerFast", "model_input_names": None},
        {"tokenizer_class": "DistilBertTokenizer", "model_input_names": None},
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": None},
        {"tokenizer_class": None, "model_input_names": None},
        {"model_input_names": ["input_ids", "attention_mask"]},
    ],
    ids=["bert", "electra", "distilbert", "any", "by the model", "told otherwise"],
)
def test_types_are_given_where_transformers_gives_them(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    path = make_cross_encoder(tmp_path, tokenizer=tokenizer)
    assert _scores(_score(PAIRS, model=path)) == pytest.approx(_predict(path, PAIRS), abs=1e-4)


@pytest.mark.parametrize("kind", ["DistilBert", "Roberta"])
def test_a_model_that_knows_no_types_is_given_none(tmp_path: Path, kind: str) -> None:
    more = {"type_vocab_size": 1} if kind == "Roberta" else {}
    path = make_cross_encoder(tmp_path / "typed", kind=kind, join="types", **more)
    without = make_cross_encoder(tmp_path / "plain", kind=kind, join="one separator", **more)
    assert _scores(_score(PAIRS, model=path)) == pytest.approx(_scores(_score(PAIRS, model=without)), abs=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1"}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
        {"problem_type": "regression"},
    ],
)
@pytest.mark.parametrize("labels", [("LABEL_0",), NLI], ids=["one label", "NLI"])
def test_scores_are_made_as_the_model_says(tmp_path: Path, told: dict[str, Any], labels: tuple[str, ...]) -> None:
    path = make_cross_encoder(tmp_path, labels, **told)
    assert _scores(_score(PAIRS, model=path)) == pytest.approx(_predict(path, PAIRS), abs=1e-4)


def test_a_model_that_was_saved_as_a_cross_encoder_has_its_own_activation_and_prompt(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from torch import nn

    made = CrossEncoder(
        make_cross_encoder(tmp_path / "plain"),
        device="cpu",
        activation_fn=nn.Identity(),
        prompts={"query": "the book is about "},
        default_prompt_name="query",
    )
    path = str(tmp_path / "saved")
    made.save_pretrained(path)
    assert (tmp_path / "saved/modules.json").is_file()
    assert _scores(_score(PAIRS, model=path)) == pytest.approx(_predict(path, PAIRS), abs=1e-4)


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.GLU", "os.system", "my_model.Scores"])
def test_an_activation_that_is_not_known_is_refused_and_can_be_told(tmp_path: Path, name: str) -> None:
    path = make_cross_encoder(tmp_path, sentence_transformers={"activation_fn": name})
    with pytest.raises(ModelError, match=r"which is not run; say score\.activation"):
        _score(PAIRS, model=path)
    (raw, squashed) = (_scores(_score(PAIRS, model=path, activation=how)) for how in ("none", "sigmoid"))
    assert squashed == pytest.approx(1 / (1 + np.exp(-raw)), abs=1e-5)


def test_the_scores_of_an_nli_model_can_be_probabilities(tmp_path: Path) -> None:
    path = make_cross_encoder(tmp_path, NLI)
    rows = _score(PAIRS, model=path, activation="softmax")
    logits = _predict(path, PAIRS)
    assert _scores(rows) == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), abs=1e-4)
    assert [row["label"] for row in rows] == [NLI[i] for i in logits.argmax(axis=1)]


def test_a_decoder_ranks_by_a_template(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = make_cross_encoder(tmp_path, kind="Mistral", join="nothing", num_key_value_heads=4)
    asked = "is the {{ document }} about {{ query }}?"
    rows = _score(PAIRS[:3], model=path, template=asked, text_pair=None)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    for row, (query, document) in zip(rows, PAIRS, strict=False):
        with torch.inference_mode():
            logit = model(**tokenizer(f"is the {document} about {query}?", return_tensors="pt")).logits[0, 0]
        assert row["score"] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-4)


def test_a_pair_fails_alone_if_one_of_its_texts_is_empty(tmp_path: Path) -> None:
    pairs = [("tea", None), (None, "tea"), ("tea", "  "), ("", "tea"), (None, None), ("tea", "soil")]
    rows = _score(pairs, model=make_cross_encoder(tmp_path))
    assert [row["error"] and row["error"]["code"] for row in rows] == ["empty_input"] * 5 + [None]
    assert rows[5]["score"] is not None


def test_templates_make_each_of_the_two_and_both_tell_pairs_apart(tmp_path: Path) -> None:
    path = make_cross_encoder(tmp_path)
    pairs = [("tea", "soil"), ("soil", "tea"), ("tea", "soil"), ("te", "asoil"), ("tea", "red")]
    rows = _score(pairs, model=path, template="about {{ query }}", text_pair="the {{ document }}.")
    expected = _predict(path, [(f"about {query}", f"the {document}.") for query, document in pairs])
    assert _scores(rows) == pytest.approx(expected, abs=1e-4)
    assert [row["usage"]["input_tokens"] > 0 for row in rows] == [True, True, False, True, True]


def test_a_pair_that_is_too_long_is_cut_fails_or_is_read_in_chunks(tmp_path: Path) -> None:
    path = make_cross_encoder(tmp_path)
    long, short = "the dog is in the garden. " * 6, "a red ball"
    pairs = [(short, long), (long, short), (long, long)]

    def told(**options: Any) -> list[str | None]:
        rows = _score(pairs, model=path, max_tokens=24, **options)
        return [row["error"] and row["error"]["code"] for row in rows]

    assert told(overflow="fail") == ["input_too_long"] * 3
    assert told(truncation="only_first") == ["input_too_long", None, "input_too_long"]
    assert told(truncation="only_second") == [None, "input_too_long", "input_too_long"]
    assert told() == [None] * 3
    assert told(overflow="chunk") == [None, None, "input_too_long"]
    assert told(overflow="chunk", truncation="only_second") == [None, "input_too_long", "input_too_long"]


def test_a_long_document_is_as_good_as_its_best_chunk(tmp_path: Path) -> None:
    path = make_cross_encoder(tmp_path)
    sentences = ["the dog is in the garden!", "a good book is about soil!", "tea is a poison!"]
    alone = _scores(_score([("a red ball", sentence) for sentence in sentences], model=path))
    options = {"model": path, "max_tokens": 14, "overflow": "chunk"}
    (largest,) = _score([("a red ball", " ".join(sentences))], chunk_pooling="max", **options)
    (mean,) = _score([("a red ball", " ".join(sentences))], **options)
    assert largest["score"] == pytest.approx(alone.max(), abs=1e-5)
    assert mean["score"] == pytest.approx(np.average(alone[:, 0], weights=[14, 13, 11]), abs=1e-5)


def test_a_cross_encoder_of_more_modules_is_refused(tmp_path: Path) -> None:
    path = Path(make_cross_encoder(tmp_path))
    modules = [
        ("", "base.modules.transformer.Transformer"),
        ("1_Score", "cross_encoder.modules.logit_score.LogitScore"),
    ]
    listing = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.{name}"}
        for i, (folder, name) in enumerate(modules)
    ]
    write_json(path / "modules.json", listing)
    (path / "1_Score").mkdir()
    with pytest.raises(ModelError, match="LogitScore after its transformer"):
        _score(PAIRS, model=str(path))


def test_no_room_for_two_texts_is_told(tmp_path: Path) -> None:
    path = make_cross_encoder(tmp_path, kind="Roberta", join="two separators")
    with pytest.raises(ModelError, match="max_tokens = 5 leaves no room for two texts"):
        _score(PAIRS, model=path, max_tokens=5)
    with pytest.raises(SpecError, match="more than half of a chunk"):
        _score(PAIRS, model=path, max_tokens=20, overflow="chunk", chunk_overlap=9)


@pytest.mark.parametrize("task", [task for task in KINDS if task != "text-classification"])
def test_other_tasks_take_no_pairs(task: str) -> None:
    with pytest.raises(SpecError, match=f"text_pair.* belong to text-classification, not to {task}"):
        make_spec(task=task, model="m", template="a", text_pair="b", labels=("x",) if "zero" in task else ())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"truncation": "only_first"}, "truncation says which text of a pair is cut; it needs a text_pair"),
        ({"text_pair": " "}, "text_pair is blank"),
        ({"text_pair": "b", "truncation": "shortest_first"}, "choose one of longest_first, only_first, only_second"),
        ({"activation": "tanh"}, "choose one of none, sigmoid, softmax"),
    ],
)
def test_options_of_pairs_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make_spec(task="text-classification", model="m", **options)


def test_a_model_of_several_labels_ranks_nothing(tmp_path: Path) -> None:
    spec = make_spec(task="text-classification", model=make_cross_encoder(tmp_path, NLI), text_pair="document")
    with pytest.raises(ModelError, match="gives 3 labels, contradiction, neutral, entailment"):
        check_ranks(spec)


def test_a_reranker_that_writes_its_answer_is_refused_with_what_to_take(tmp_path: Path) -> None:
    from tests.writers import make_decoder

    with pytest.raises(ModelError, match="it writes; take the version"):
        _score(PAIRS, model=make_decoder(tmp_path))


def test_a_model_without_a_head_ranks_nothing(tmp_path: Path) -> None:
    for path in (make_encoder(tmp_path / "encoder"), make_tagger(tmp_path / "tagger", ["O"])):
        with pytest.raises(ModelError, match="no classification head"):
            _score(PAIRS, model=path)


def test_a_pair_is_read_as_the_pipeline_reads_it(tmp_path: Path) -> None:
    from transformers import pipeline

    path = make_cross_encoder(tmp_path, NLI)
    made = pipeline("text-classification", path, device="cpu")
    expected = made([{"text": a, "text_pair": b} for a, b in PAIRS[:3]], top_k=None)
    for row, found in zip(_score(PAIRS[:3], model=path, activation="softmax"), expected, strict=True):
        assert dict(row["scores"]) == pytest.approx({f["label"]: f["score"] for f in found}, abs=1e-4)
