"""Embeddings of every kind of model against `SentenceTransformer.encode`, with the same arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.models import LayerNorm, Normalize, Pooling
from sentence_transformers.util import quantize_embeddings
from transformers import AutoModel

from tests.conftest import MINILM
from tests.embedders import WIDTH, embed, encode, make_dense, make_embedder, make_static, vectors
from tests.engine_rows import undisturbed_rows
from tests.models import VOCABULARY, make_encoder, write_json
from udfs.errors import ModelError, SpecError, UnsafeModelError
from udfs.executor import executor_of
from udfs.model.files import find_model, open_model
from udfs.tasks.registry import make_spec, make_task
from udfs.text.tokenizing import Tokenizer
from udfs.wire.home import EngineId, find_home

TEXTS = [
    *("a good red kettle", "soil", "the tea is not very good, a bad book about a cat", "a dog"),
    *("this is a spade of the garden. the shirt is blue, and a lamp is green!", "poison zzz 19:30"),
]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
# A packed architecture, and one that is padded.
KINDS = ["Bert", "MPNet"]
Make = Callable[[], list[Any]]
PIPELINES: dict[str, Make] = {
    "dense": lambda: [Pooling(WIDTH), make_dense()],
    "dense without bias": lambda: [Pooling(WIDTH), make_dense(64, "Identity", bias=False), Normalize()],
    "two dense": lambda: [Pooling(WIDTH), make_dense(64, "Identity"), make_dense(16, "GELU", inputs=64), Normalize()],
    "residual": lambda: [Pooling(WIDTH), make_dense(WIDTH, "ReLU", use_residual=True)],
    "residual of another width": lambda: [Pooling(WIDTH), make_dense(20, "SiLU", use_residual=True)],
    "layer norm": lambda: [Pooling(WIDTH), LayerNorm(WIDTH), Normalize()],
    "normalize amid": lambda: [Pooling(WIDTH, "cls"), Normalize(), make_dense(), LayerNorm(24)],
    "normalize first": lambda: [Normalize(), Pooling(WIDTH)],
    "dense of tokens": lambda: [
        make_dense(24, module_input_name="token_embeddings", bias=False),
        Normalize(module_input_name="token_embeddings"),
        Pooling(24, "max"),
    ],
    "side by side": lambda: [Pooling(WIDTH, ("mean", "cls", "max")), make_dense(inputs=3 * WIDTH), Normalize()],
    "all modes": lambda: [Pooling(WIDTH, tuple(MODES))],
    "two poolings": lambda: [Pooling(WIDTH, "max"), Pooling(WIDTH, "weightedmean"), Normalize()],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modules", PIPELINES)
def test_modules_equal_sentence_transformers(tmp_path: Path, modules: str, kind: str) -> None:
    model = make_embedder(tmp_path, *PIPELINES[modules](), kind=kind)
    np.testing.assert_allclose(vectors(model, TEXTS), encode(model, TEXTS), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_poolings_without_the_prompt_equal_sentence_transformers(tmp_path: Path, mode: str, kind: str) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH, mode, include_prompt=False), kind=kind)
    expected = encode(model, TEXTS, prompt="a very good: ")
    np.testing.assert_allclose(vectors(model, TEXTS, prompt="a very good: "), expected, atol=2e-5)


def test_each_activation_equals_torchs(tmp_path: Path) -> None:
    from udfs.model.embedding import ACTIVATIONS

    make_embedder(tmp_path, Pooling(WIDTH), make_dense())
    path = tmp_path / "model/2_Dense/config.json"
    config = json.loads(path.read_text())
    for name in ACTIVATIONS:
        made = getattr(torch.nn, name)
        write_json(path, config | {"activation_function": f"{made.__module__}.{name}"})
        expected = encode(str(tmp_path / "model"), TEXTS[:2])
        np.testing.assert_allclose(vectors(str(tmp_path / "model"), TEXTS[:2]), expected, atol=2e-5, err_msg=name)
        open_model.cache_clear()


PROMPTS = {"query": "a query: ", "document": "", "Red": "red "}


@pytest.mark.parametrize(
    "asked", [{"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "tea: "}, {"prompt": ""}, {}]
)
def test_prompts_equal_sentence_transformers(tmp_path: Path, asked: dict[str, str]) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), prompts=PROMPTS, default_prompt_name="Red")
    np.testing.assert_allclose(vectors(model, TEXTS, **asked), encode(model, TEXTS, **asked), atol=2e-5)


def test_a_prompt_that_the_model_has_not_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), prompts=PROMPTS)
    with pytest.raises(ModelError, match=r"no prompt 'passage'.*'Red', 'document', 'query'"):
        embed(model, TEXTS, prompt_name="passage")
    with pytest.raises(ModelError, match="it names none; `prompt` takes any text"):
        embed(make_encoder(tmp_path / "plain"), TEXTS, prompt_name="query")
    with pytest.raises(SpecError, match="give one"):
        make_spec("feature-extraction", model, prompt="a", prompt_name="query")


def test_a_default_prompt_that_is_not_there_is_refused(tmp_path: Path) -> None:
    model = make_encoder(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", {"default_prompt_name": "query"})
    with pytest.raises(ModelError, match="no prompt 'query', which is its default prompt"):
        embed(model, TEXTS)


def test_prompts_share_an_engine_unless_they_are_left_out_of_the_vector(tmp_path: Path) -> None:
    def homes(model: str) -> set[Path]:
        asked = (make_spec("feature-extraction", model, prompt=prompt) for prompt in ("a: ", "b: "))
        return {find_home(EngineId(spec, None, executor_of())).path for spec in asked}

    assert len(homes(make_embedder(tmp_path / "a", Pooling(WIDTH)))) == 1
    assert len(homes(make_embedder(tmp_path / "b", Pooling(WIDTH, include_prompt=False)))) == 2


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dimensions", [1, 8, WIDTH])
def test_fewer_dimensions_equal_sentence_transformers(tmp_path: Path, dimensions: int, normalize: bool) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), *([Normalize()] if normalize else []))
    expected = encode(model, TEXTS, truncate_dim=dimensions, normalize_embeddings=normalize)
    np.testing.assert_allclose(vectors(model, TEXTS, dimensions=dimensions), expected, atol=2e-5)


def test_more_dimensions_than_a_vector_has_are_refused_before_the_model_loads(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), make_dense(24))
    spec = make_spec("feature-extraction", model, dimensions=25)
    with pytest.raises(ModelError, match=r"dimensions is 25, but .* makes vectors of 24 numbers"):
        make_task(spec, open_model(model))


@pytest.mark.parametrize("how", ["binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [WIDTH, 20])
def test_bits_equal_sentence_transformers(tmp_path: Path, how: Any, dimensions: int) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH))
    expected = encode(model, TEXTS, precision=how, truncate_dim=dimensions)
    rows = embed(model, TEXTS, quantization=how, dimensions=dimensions)
    found = np.array([np.frombuffer(row["embedding"], expected.dtype) for row in rows])
    np.testing.assert_array_equal(found, expected)


def test_bytes_equal_sentence_transformers_by_the_same_ranges(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), Normalize())
    floats = encode(model, TEXTS)
    ranges = np.stack([floats[:4].min(axis=0), floats[:4].max(axis=0)])
    found = vectors(model, TEXTS, quantization="int8", ranges=ranges.tolist())
    expected = quantize_embeddings(floats, "int8", ranges=ranges)
    assert (found.min(), found.max()) == (-128, 127)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.9  # the ends of the ranges lie on a border


def test_half_floats_are_two_bytes_each(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH), Normalize())
    rows = embed(model, TEXTS, quantization="float16")
    found = np.array([np.frombuffer(row["embedding"], "<f2") for row in rows])
    np.testing.assert_allclose(found, encode(model, TEXTS), atol=1e-3)


def test_a_failed_row_has_no_quantized_vector(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, Pooling(WIDTH))
    for how in ("float16", "binary"):
        rows = embed(model, ["tea", " ", "soil"], quantization=how)
        assert [row["embedding"] is None for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantization": "int4"}, "choose one of float32, float16, int8, binary, ubinary"),
        ({"quantization": "binary", "ranges": [[0.0], [1.0]]}, "ranges belongs to quantization 'int8'"),
        ({"quantization": "int8", "ranges": [[0.0, 2.0], [1.0, 1.0]]}, "two lists"),
        ({"quantization": "int8", "ranges": [[0.0], [1.0, 1.0]]}, "two lists"),
        ({"quantization": "int8", "ranges": [0.0, 1.0]}, "two lists"),
        ({"dimensions": 0}, "dimensions is 0; it must be 1 or more"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        make_spec("feature-extraction", "m", **options)


def test_ranges_of_another_width_are_refused(tmp_path: Path) -> None:
    spec = make_spec("feature-extraction", make_encoder(tmp_path), quantization="int8", ranges=[[0.0] * 9, [1.0] * 9])
    with pytest.raises(ModelError, match="ranges has 9 numbers, but the vectors will have 32"):
        make_task(spec, open_model(spec.model))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_static_model_equals_sentence_transformers(tmp_path: Path, normalize: bool) -> None:
    model = make_static(tmp_path / "model", normalize=normalize)
    texts = [*TEXTS, "tea " * 600]  # no length is too long
    np.testing.assert_allclose(vectors(model, texts), encode(model, texts), atol=2e-5)
    options = {"prompt": "red: ", "dimensions": 8}
    expected = encode(model, texts, prompt="red: ", truncate_dim=8, normalize_embeddings=normalize)
    np.testing.assert_allclose(vectors(model, texts, **options), expected, atol=2e-5)


@pytest.mark.parametrize("listed", [True, False])
def test_a_model_of_model2vec_equals_sentence_transformers(tmp_path: Path, listed: bool) -> None:
    model = make_static(tmp_path / "model", by="model2vec")
    expected = encode(model, TEXTS)
    if not listed:  # as model2vec itself reads it, by its config.json
        (tmp_path / "model/modules.json").unlink()
    np.testing.assert_allclose(vectors(model, TEXTS), expected, atol=2e-5)
    rows = embed(model, ["tea", "", " "])
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "empty_input", "empty_input"]
    assert rows[0]["engine"].endswith(":cpu/float32/packed")


def test_a_static_model_tags_by_similarity(tmp_path: Path) -> None:
    model = make_static(tmp_path / "model")
    spec = make_spec("zero-shot-classification", model, labels=("tea", "a dog", "soil"), multi_label=True)
    rows = undisturbed_rows(["soil", "tea"], spec)
    assert [row["label"] for row in rows] == ["soil", "tea"]


def test_a_static_model_has_a_vector_for_each_token_or_is_refused(tmp_path: Path) -> None:
    model = make_static(tmp_path / "model")
    table = load_file(f"{model}/model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": table[:50].contiguous()}, f"{model}/model.safetensors")
    with pytest.raises(ModelError, match="has vectors for 50 tokens"):
        make_task(make_spec("feature-extraction", model), open_model(model))


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation", "summarization"])
def test_a_static_model_does_nothing_else(tmp_path: Path, task: str) -> None:
    model = make_static(tmp_path / "model")
    with pytest.raises((ModelError, SpecError)):
        make_task(make_spec(task, model), open_model(model)).tokenize(["tea"])


def _modules(*kinds: str) -> Callable[[Path], None]:
    """Other modules than the model was saved with."""

    def write(model: Path) -> None:
        listed = [
            {
                "idx": i,
                "name": str(i),
                "path": "" if i == 0 else f"{i}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        write_json(model / "modules.json", listed)

    return write


def _dense(**config: Any) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        path = model / "2_Dense/config.json"
        write_json(path, json.loads(path.read_text()) | config)

    return write


def _pickle(model: Path) -> None:
    (model / "2_Dense/model.safetensors").rename(model / "2_Dense/pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_dense(activation_function="os.system"), "activation_function 'os.system'"),
        (_dense(activation_function="torch.nn.modules.activation.Threshold"), "activation_function"),
        (_dense(activation_function="torch.hub.load"), "activation_function"),
        (_dense(module_input_name="image_embeds"), "names 'image_embeds'"),
        (_dense(in_features=64), "needs linear.weight of shape"),
        (_dense(out_features=None), "lacks out_features"),
        (_pickle, "pickled weights alone"),
        (lambda model: (model / "2_Dense/model.safetensors").write_bytes(b"garbage!garbage!"), "read as safetensors"),
        (_modules("Transformer", "Dense", "Pooling"), "no directory '1_Dense'|lacks in_features"),
        (lambda model: (model / "1_Pooling/config.json").unlink(), "Pooling module has no config.json"),
        (_modules("Transformer", "Normalize"), "no Pooling"),
        (_modules("Transformer", "Pooling", "WordWeights"), "has a WordWeights module"),
        (_modules("Transformer", "WeightedLayerPooling", "Pooling"), "has a WeightedLayerPooling module"),
        (_modules("Transformer", "LSTM", "Pooling"), "has a LSTM module"),
        (_modules("Router", "Pooling"), "begins with Router, which sends queries"),
        (_modules("Asym", "Normalize"), "begins with Asym, which sends queries"),
        (_modules("CLIPModel"), "begins with CLIPModel, which reads images"),
        (_modules("BoW", "Dense"), "begins with BoW, which counts words"),
        (_modules("WordEmbeddings", "Pooling"), "begins with WordEmbeddings"),
        (_modules("StaticEmbedding", "Pooling"), "no table of token vectors|no token states"),
    ],
)
def test_what_gristmill_cannot_do_as_sentence_transformers_does_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    model = Path(make_embedder(tmp_path, Pooling(WIDTH), make_dense()))
    spoil(model)
    with pytest.raises((ModelError, UnsafeModelError), match=told):
        make_task(make_spec("feature-extraction", str(model)), open_model(str(model))).tokenize(["tea"])


def _set(model: Path, file: str, **told: Any) -> None:
    held = json.loads((model / file).read_text()) if (model / file).is_file() else {}
    write_json(model / file, held | told)


@pytest.mark.parametrize(
    "told",
    [
        {"config_args": {"num_hidden_layers": 1}},
        {"config_kwargs": {"hidden_act": "relu"}},
        {"model_args": {"variant": "fp16"}},
        {"tokenizer_args": {"do_lower_case": False}},
        {"processing_kwargs": {"text": {"add_special_tokens": False}}},
        {"processing_kwargs": {"common": {"max_length": 5}}},
    ],
    ids=lambda told: next(iter(told)),
)
def test_settings_that_change_a_vector_and_are_not_followed_are_refused(tmp_path: Path, told: dict[str, Any]) -> None:
    model = Path(make_encoder(tmp_path))
    _set(model, "sentence_bert_config.json", **told)
    key, nested = next(iter(told.items()))
    with pytest.raises(ModelError, match=f"{key}.{next(iter(nested))}"):
        make_task(make_spec("feature-extraction", str(model)), open_model(str(model)))


@pytest.mark.parametrize(
    "told",
    [
        {"processing_kwargs": {"text": {"max_length": 5, "truncation": True}}},
        {"tokenizer_args": {"model_max_length": 6}},
        {"model_args": {"attn_implementation": "eager"}, "config_args": {"trust_remote_code": True}},
    ],
    ids=["called with", "loaded with", "harmless"],
)
def test_settings_that_are_followed_equal_sentence_transformers(tmp_path: Path, told: dict[str, Any]) -> None:
    model = Path(make_encoder(tmp_path))
    _set(model, "sentence_bert_config.json", **told)
    np.testing.assert_allclose(vectors(str(model), TEXTS), encode(str(model), TEXTS), atol=5e-5)


def test_a_model_that_takes_chats_alone_is_refused(tmp_path: Path) -> None:
    model = Path(make_encoder(tmp_path))
    way = {"method": "forward", "method_output_name": "last_hidden_state"}
    _set(model, "sentence_bert_config.json", modality_config={"message": way}, module_output_name="token_embeddings")
    with pytest.raises(ModelError, match="takes message and no plain texts"):
        make_task(make_spec("feature-extraction", str(model)), open_model(str(model)))


@pytest.mark.parametrize("told", [["text"], {"text": "forward"}], ids=["list", "text"])
def test_settings_that_are_none_are_told(tmp_path: Path, told: Any) -> None:
    model = Path(make_encoder(tmp_path))
    _set(model, "sentence_bert_config.json", modality_config=told)
    with pytest.raises(ModelError, match="modality_config of its sentence-transformers settings is no object"):
        make_task(make_spec("feature-extraction", str(model)), open_model(str(model)))


@pytest.mark.parametrize("asked", [{}, {"prompt": "A [SEP] RED"}], ids=["texts", "prompt"])
@pytest.mark.parametrize("lowercases", [True, False], ids=["as its tokenizer does", "its tokenizer does not"])
def test_texts_are_lower_cased_but_for_the_special_tokens_that_they_spell(
    tmp_path: Path, asked: dict[str, str], lowercases: bool
) -> None:
    model = Path(make_encoder(tmp_path))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = lowercases
    tokenizer["added_tokens"] = [
        {"id": VOCABULARY[token], "content": token, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    ]
    write_json(model / "tokenizer.json", tokenizer)
    _set(model, "tokenizer_config.json", do_lower_case=lowercases)
    _set(model, "sentence_bert_config.json", do_lower_case=True)
    texts = ["A GOOD Red Kettle", "[SEP] a Dog [SEP] the CAT", "Tea"]
    np.testing.assert_allclose(vectors(str(model), texts, **asked), encode(str(model), texts, **asked), atol=5e-5)


def test_modules_whose_widths_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    model = Path(make_embedder(tmp_path, Pooling(WIDTH), make_dense(24)))
    write_json(model / "1_Pooling/config.json", {"pooling_mode": ["mean", "max"]})
    with pytest.raises(ModelError, match="Dense module takes 32 numbers, and gets 64"):
        make_task(make_spec("feature-extraction", str(model)), open_model(str(model)))


def test_a_causal_model_without_modules_has_its_last_token_as_sentence_transformers_has(tmp_path: Path) -> None:
    model = Path(make_encoder(tmp_path, kind="Roberta"))
    (model / "modules.json").unlink()
    (model / "sentence_bert_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"architectures": ["RobertaForCausalLM"]})
    np.testing.assert_allclose(vectors(str(model), TEXTS), encode(str(model), TEXTS), atol=5e-5)


@pytest.mark.parametrize("kind", ["LongT5", "Marian", pytest.param("M2M100", marks=pytest.mark.long)])
def test_the_encoder_of_a_model_that_writes_embeds_alone(tmp_path: Path, kind: str) -> None:
    model = make_encoder(tmp_path, kind=kind)
    encoder = AutoModel.from_pretrained(model).eval().get_encoder()
    tokenizer = Tokenizer(open_model(model), max_tokens=None, overflow="truncate")
    rows = []
    for text in TEXTS:
        ids = torch.from_numpy(tokenizer([text]).items.ids[None].astype(np.int64))
        states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].detach().numpy()
        rows.append(states.mean(0) / np.linalg.norm(states.mean(0)))
    np.testing.assert_allclose(vectors(model, TEXTS), np.array(rows), atol=5e-5)


REAL = ["The cat sits outside.", "A man is playing guitar", "I love pasta, and wine.", "Movies: how awesome!", "ok"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"prompt": "query: "}, {"prompt": "query: "}),
        ({"dimensions": 64}, {"truncate_dim": 64, "normalize_embeddings": True}),
    ],
)
def test_minilm_equals_sentence_transformers(options: dict[str, Any], arguments: dict[str, Any]) -> None:
    path = str(find_model(MINILM, None)[0])
    np.testing.assert_allclose(vectors(MINILM, REAL, **options), encode(path, REAL, **arguments), atol=1e-5)


def test_minilm_in_bits_equals_sentence_transformers() -> None:
    expected = encode(str(find_model(MINILM, None)[0]), REAL, precision="binary")
    rows = embed(MINILM, REAL, quantization="binary")
    np.testing.assert_array_equal([np.frombuffer(row["embedding"], np.int8) for row in rows], expected)
