"""What is told of the model, the schema and the choices before Spark starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.errors import SettingsError
from jobs.job import open_job, start_run
from jobs.job_file import load_settings
from jobs.preflight import check_model, name_ends, tell_ignored_settings
from jobs.settings import Settings
from tests.models import make_encoder, write_json
from tests.random_writers import save_writer
from tests.writers import make_decoder
from udfs.errors import ModelError, SpecError, UnsafeModelError
from udfs.model.files import open_model, open_model_of

WriteJob = Callable[..., Path]
SETS = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}


@pytest.fixture
def write_settings(write_job: WriteJob, tmp_path: Path) -> Callable[..., Settings]:
    model = make_decoder(tmp_path / "model")
    write_json(tmp_path / "model/generation_config.json", {"eos_token_id": 257})

    def write(**score: Any) -> Settings:
        asked = {"task": "text-generation", "model": model, "text": None, "prompt": "Say {{ text }}"}
        return load_settings(write_job(score={**asked, **score}))

    return write


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "does not load"),
        (lambda m: (m / "tokenizer_config.json").write_text("[]"), "not an object"),
    ],
)
def test_a_tokenizer_that_does_not_load_is_told_before_spark_starts(
    write_job: WriteJob, tmp_path: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    model = make_encoder(tmp_path / "encoder")
    settings = load_settings(write_job(score={"task": "feature-extraction", "model": model}))
    check_model(settings)
    spoil(tmp_path / "encoder")
    open_model.cache_clear()
    with pytest.raises(ModelError, match=told):
        check_model(settings)


def test_an_answer_that_is_too_long_for_its_model_is_told_before_spark_starts(
    write_job: WriteJob, tmp_path: Path
) -> None:
    score = {"task": "summarization", "model": save_writer(tmp_path / "bart", "Bart")}
    with pytest.raises(ModelError, match="writes at most 255 tokens"):
        check_model(load_settings(write_job(score=score)))
    check_model(load_settings(write_job(score={**score, "max_new_tokens": 100})))


def test_end_tokens_that_are_none_are_told(write_settings: Callable[..., Settings], tmp_path: Path) -> None:
    write_json(tmp_path / "model/generation_config.json", {"eos_token_id": ["x"]})
    with pytest.raises(ModelError, match=r"names its end tokens \['x'\]"):
        name_ends(open_model_of(write_settings().spec()))


def test_what_the_grammar_does_not_hold_is_told_before_spark_starts(
    write_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(Exception):
        """Spark was asked for."""

    def start(*_: Any, **__: Any) -> None:
        raise Started

    monkeypatch.setattr("jobs.job.open_session", start)
    settings = write_settings(schema=SETS)
    with pytest.raises(Started), open_job(start_run("score", settings, console=Console(stderr=True, width=1000))):
        pass
    assert (
        "score.schema has uniqueItems at properties.tags, to which the grammar does not hold" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ({"schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum (3) is greater than maximum (2)"),
        ({"schema": {"$ref": "#/$defs/none"}}, "refers to '#/$defs/none'"),
        ({"choices": ["a", "b c"], "stop": [" "]}, "stop holds ' ', which would end a choice"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "gristmill gives the chat template itself"),
        ({"reasoning": "hide"}, "reasoning"),
    ],
)
def test_what_cannot_be_meant_is_a_mistake_of_the_settings(
    write_settings: Callable[..., Settings], score: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        write_settings(**score)
    assert told in str(raised.value)


def test_a_model_that_needs_its_own_code_is_refused_before_spark_starts(
    write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(make_encoder(tmp_path / "encoder"))
    config = json.loads((path / "config.json").read_text())
    told = {"auto_map": {"AutoModel": "modeling_own.OwnModel"}, "architectures": ["OwnModel"]}
    write_json(path / "config.json", config | told)
    settings = load_settings(write_job(score={"model": str(path)}))
    assert check_model(settings) == settings
    write_json(path / "config.json", config | told | {"intermediate_size": 8})
    open_model.cache_clear()
    monkeypatch.setattr("jobs.job.open_session", lambda *_, **__: pytest.fail("Spark was asked for"))
    with (
        pytest.raises(UnsafeModelError, match="needs Python code"),
        open_job(start_run("score", settings, console=Console())),
    ):
        pass


def test_the_commit_of_an_adapters_base_is_the_runs(
    write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_encoder(tmp_path / "encoder")
    settings = load_settings(write_job(score={"model": path, "base_model": "org/base", "base_revision": "c0ffee"}))
    assert (settings.spec().base_model, settings.spec().base_revision) == ("org/base", "c0ffee")
    with pytest.raises(ModelError, match="base_model is for LoRA adapters"):
        check_model(settings)
    monkeypatch.setattr("jobs.preflight.open_model_of", lambda _: open_model(path))
    monkeypatch.setattr("jobs.preflight.pin", lambda spec: replace(spec, base_revision="decaf"))
    assert check_model(settings).score.model_dump()["base_revision"] == "decaf"


def test_choices_that_the_model_cannot_write_are_told(write_settings: Callable[..., Settings]) -> None:
    with pytest.raises(SpecError, match="choices has 'a</s>', which the model's tokenizer cannot write"):
        check_model(write_settings(choices=["a</s>"]))
    with pytest.raises(SpecError, match="choices has 'abc', of 3 tokens, but max_new_tokens is 2"):
        check_model(write_settings(choices=["abc"], max_new_tokens=2))
    check_model(write_settings(choices=["a", "b"]))


def test_settings_that_the_chat_template_does_not_read_are_told(write_settings: Callable[..., Settings]) -> None:
    asked = {"prompt": None, "messages": [{"role": "user", "content": "{{ text }}"}]}
    settings = write_settings(**asked, chat_template_kwargs={"enable_thinkin": False, "bos_token": "<s>"})
    (told,) = tell_ignored_settings(check_model(settings))
    assert told.endswith("reads no enable_thinkin")


def test_the_tokens_that_end_an_answer_have_names(write_settings: Callable[..., Settings]) -> None:
    assert name_ends(open_model_of(write_settings().spec())) == ["</s> (257)"]
