"""What fits no cache of ours is written by transformers, one text at a time, and picked by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.fetch_smollm2 import TARGET as SMOLLM2
from tests.random_writers import make_writer, save_writer
from tests.writers import CHARACTERS, make_decoder
from udfs.generation import loading
from udfs.generation.loading import load_writer
from udfs.generation.plain import PlainWriter
from udfs.generation.trying import in_float32, is_alike
from udfs.local import LocalEngine
from udfs.model.precision import DevicePlan
from udfs.tasks.registry import make_spec
from udfs.text.codec import FastCodec
from udfs.worker.scoring import score_with

TEXTS = ["tea", "a red kettle", "tea", "soil and a lamp"]
NEW = 6


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its attention knows places by biases, which no cache of slots has."""
    path = tmp_path_factory.mktemp("bloom")
    make_decoder(path)
    torch.manual_seed(3)
    config = transformers.BloomConfig(vocab_size=CHARACTERS, hidden_size=32, n_layer=2, n_head=4, eos_token_id=257)
    model = transformers.BloomForCausalLM(config)
    for weights in model.parameters():
        weights.data.mul_(3)
    model.save_pretrained(path)
    return str(path)


def _write(path: str, **options: Any) -> tuple[list[str], str]:
    spec = make_spec("text-generation", path, precision="float32", max_new_tokens=NEW, **options)
    with LocalEngine(spec) as engine:
        rows = [row for part in score_with(engine, [pa.array(TEXTS)], spec) for row in part.to_pylist()]
        return [row["text"] for row in rows], engine.model.name


def test_answers_are_those_of_generate(bloom: str) -> None:
    texts, name = _write(bloom)
    model = transformers.AutoModelForCausalLM.from_pretrained(bloom).eval()
    codec = FastCodec(_files(bloom))
    for text, answer in zip(TEXTS, texts, strict=True):
        ids = torch.tensor(codec.encode([text], special=True))
        written = model.generate(ids, do_sample=False, max_new_tokens=NEW)[0, ids.shape[1] :].numpy()
        assert answer == codec.decode([written])[0]
    assert name.endswith("/alone")


def test_choices_hold_where_transformers_writes(bloom: str) -> None:
    texts, _ = _write(bloom, choices=["tea", "soil"])
    assert set(texts) <= {"tea", "soil"}


def test_a_stop_string_ends_an_answer_where_transformers_writes(bloom: str) -> None:
    whole, _ = _write(bloom)
    stop = whole[0][2]
    assert _write(bloom, stop=[stop])[0][0] == whole[0][: whole[0].index(stop)]


def test_float32_has_to_be_close_and_half_precision_alike() -> None:
    wanted = np.random.default_rng(1).normal(size=(2, 3, 50)).astype(np.float32)
    near = wanted + 0.05
    assert is_alike(wanted, wanted, precision="float32")
    assert not is_alike(near, wanted, precision="float32")
    assert is_alike(near, wanted, precision="bfloat16")
    assert not is_alike(-wanted, wanted, precision="bfloat16")
    assert not is_alike(wanted[:, :2], wanted, precision="float32")


def _files(path: str) -> Any:
    from udfs.model.files import open_model

    return open_model(path)


def test_a_model_is_taken_to_float32_and_back_to_the_last_bit() -> None:
    model = make_writer("Llama").to(torch.bfloat16)
    model.register_buffer("table", torch.arange(3.0))  # which stays in float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with in_float32(model):
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert model.table.dtype == torch.float32


def _load(path: Path, precision: str) -> Any:
    spec = make_spec(task="text-generation", model=save_writer(path, "Llama"), max_new_tokens=4, precision=precision)
    return load_writer(spec, DevicePlan("cpu", precision, ""), name="test", lanes=1)


@pytest.mark.parametrize("way", ["noise", "wrong"])
def test_rounding_that_carries_half_precision_apart_is_told_from_a_cache_that_is_wrong(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(found: np.ndarray, wanted: np.ndarray, *, precision: str) -> bool:
        return precision == "float32" and way == "noise" and is_alike(found, wanted, precision=precision)

    monkeypatch.setattr(loading, "is_alike", judge)
    writer = _load(tmp_path, "bfloat16")
    assert isinstance(writer, PlainWriter) == (way == "wrong")


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="python -m tests.fetch_smollm2 brings the model")
@pytest.mark.long
def test_a_real_model_in_half_precision_is_written_with_by_a_decoder() -> None:
    spec = make_spec(task="text-generation", model=str(SMOLLM2), max_new_tokens=4, precision="bfloat16")
    assert isinstance(load_writer(spec, DevicePlan("cpu", "bfloat16", ""), name="test", lanes=1), list)
