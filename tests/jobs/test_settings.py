from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.errors import SettingsError
from jobs.job_file import load_settings
from jobs.settings import Settings
from tests.conftest import ROOT
from udfs.tasks.registry import read_spec

JOB = """
input: {path: in.parquet}
output: {path: out}
score: {task: feature-extraction, model: m, text: title}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def test_a_small_job_has_the_defaults_of_the_documentation(job: Path) -> None:
    settings = load_settings(job)
    assert settings.input.format == "parquet"
    assert settings.output.name == "prediction"
    assert (settings.batching.window_rows, settings.batching.dedupe) == (8192, True)
    assert settings.spec().max_batch_tokens is None
    assert settings.text_columns() == ("title",)


def test_all_mistakes_are_told_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("""
input: {path: a, table: b, formt: csv}
output: {}
score: {task: embed, model: m, text: t, max_tokens: -3}
limits: {max_error_rate: 7}
sparkk: {}
""")
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    message = str(caught.value)
    for mistake in ("input.formt: there is no such key", "output.path: is missing", "score.task", "score.max_tokens",
                    "limits.max_error_rate", "sparkk: there is no such key"):  # fmt: skip
        assert mistake in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("score.task=zero-shot-classification", "needs labels"),
        ("score.labels=[a, b]", "belong to text-classification and zero-shot-classification"),
        ("score.text={{ title", "does not parse"),
        ("score.text={{ 'x' }}", "reads no column"),
        ("input.table=t", "exactly one of path, table and query"),
        ("score.overflow=cut", "score.overflow"),
        ("input.options={IgnoreMissingFiles: true}", "leaves files out in silence"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(job: Path, override: str, told: str) -> None:
    with pytest.raises(SettingsError, match="1 mistake") as caught:
        load_settings(job, [override])
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize("name", ["cost.usd_per_hour", "limits.max_error_rate", "score.temperature", "limits.max_usd"])
def test_a_number_is_finite(job: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name}: input should be a finite number"):
        load_settings(job, [f"{name}={value}"])


@pytest.mark.parametrize("output", ["data/in/out", "./data/in/deep/out", "data/in/../in/out"])
def test_an_output_within_its_input_is_refused(job: Path, output: str) -> None:
    with pytest.raises(SettingsError, match=r"lies in input\.path"):
        load_settings(job, ["input.path=data/in/", f"output.path={output}"])
    load_settings(job, ["input.path=data/in", "output.path=data/in2"])


def test_set_overrides_values_lists_nulls_and_keys_with_dots(job: Path) -> None:
    settings = load_settings(
        job,
        [
            "score.task=zero-shot-classification",
            "score.labels=[kitchen, 'pets & co']",
            "score.max_tokens=128",
            "input.path=null",
            "input.query=SELECT 1 AS title",
            "spark.conf.spark.sql.shuffle.partitions=8",
            "input.options.multiLine=true",
        ],
    )
    assert settings.spec().options.labels == ("kitchen", "pets & co")
    assert settings.spec().max_tokens == 128
    assert settings.input.query == "SELECT 1 AS title"
    assert settings.spark.conf == {"spark.sql.shuffle.partitions": 8}
    assert settings.input.options == {"multiLine": True}


@pytest.mark.parametrize("override", ["score.max_tokens", "=3", "score.text.deeper=3", "score.labels=[a"])
def test_a_set_that_cannot_be_read_is_told(job: Path, override: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        load_settings(job, [override])


@pytest.mark.parametrize(
    ("text", "told"), [("a: [", "no YAML"), ("", "no job"), ("- a", "no job"), ("\x00", "no YAML")]
)
def test_a_file_that_is_no_job_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=told):
        load_settings(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_the_jobs_that_come_along_hold_and_name_their_command(path: Path) -> None:
    settings = load_settings(path)
    schema = "# yaml-language-server: $schema=job.schema.json\n"
    assert path.read_text().startswith(f"{schema}# gristmill score conf/{path.name}\n")
    assert (ROOT / str(settings.input.path)).exists()
    if "/" in settings.score.model and not settings.score.model.startswith(("package:", "./")):
        assert len(settings.score.revision or "") == 40


def _writing(score: dict[str, Any], **output: Any) -> Settings:
    told = {"task": "text-generation", "model": "m", **score}
    return Settings.model_validate(
        {"input": {"path": "in", "key": ["id"]}, "output": {"path": "o", **output}, "score": told}
    )


def test_messages_and_variants_reach_the_spec_and_name_their_columns() -> None:
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "{{ title }} in {{ language }}"}]
    settings = _writing({"messages": messages, "variants": {"language": ["de", "fr"]}, "schema": {"type": "string"}})
    spec = settings.spec()
    assert spec.options.messages == (("system", "Brief."), ("user", "{{ title }} in {{ language }}"))
    assert (spec.options.variants, spec.options.variant_name) == (("de", "fr"), "language")
    assert spec.options.json_schema == '{"type": "string"}'
    assert settings.text_columns() == ("title",)
    assert settings.exploded() is None
    assert json.loads(json.dumps(spec.decides_answers())) == spec.decides_answers()
    assert read_spec(json.loads(json.dumps(spec.decides_answers()))) == spec
    assert read_spec(json.loads(json.dumps(spec.for_engine()))).options.max_new_tokens == 256


def test_what_is_put_before_the_texts_of_an_embedding_is_no_column() -> None:
    settings = _writing({"task": "feature-extraction", "text": "t", "prompt": "query: "})
    assert settings.plain_columns() == {"text": "t"}
    assert settings.text_columns() == ("t",)


def test_variants_as_rows_are_a_column_of_the_input_the_output_and_the_key() -> None:
    asked = {"prompt": "{{ title }} in {{ variant }}", "variants": ["de", "fr"], "variants_as": "rows"}
    settings = _writing(asked, columns=["id"])
    assert settings.spec().options.variants == ()
    assert settings.exploded() == ("variant", ("de", "fr"))
    assert settings.text_columns() == ("title", "variant")
    assert settings.input_columns() == ("title",)
    assert settings.output_columns() == ["id", "variant"]
    assert settings.key() == ["id", "variant"]


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ({}, "takes prompt or messages, not none"),
        ({"text": "a"}, "takes prompt or messages, not text"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "{{ a }}"}]}, "not prompt and messages"),
        ({"task": "translation", "prompt": "a"}, "takes text, not prompt"),
        ({"task": "feature-extraction", "text": "a", "max_new_tokens": 9}, "max_new_tokens belong to text-generation"),
        ({"task": "summarization", "text": "a", "choices": ["b"]}, "choices belong to text-generation"),
        ({"prompt": "a", "target_lang": "de"}, "belong to translation"),
        ({"task": "translation", "text": "t", "target_lang": []}, "empty list"),
        ({"task": "translation", "text": "t", "target_lang": False}, "1 validation error"),
        ({"task": "translation", "text": "t", "target_lang": ["de", False]}, "`no` is one in quotes alone"),
        ({"task": "translation", "text": "t", "target_lang": ["de", "de"]}, "target_lang holds a value more than once"),
        ({"task": "translation", "text": "t", "target_lang": ["de"], "variants_as": "rows"}, "in a map"),
        ({"prompt": "a", "choices": ["b"], "schema": {"type": "string"}}, "exclude each other"),
        ({"prompt": "a", "schema": {"type": "text"}}, "no JSON schema"),
        ({"prompt": "a", "temperature": 1, "num_beams": 2}, "choose one"),
        ({"prompt": "a", "choices": ["b"], "num_beams": 2}, "choose one"),
        ({"prompt": "a", "top_k": 2}, "set a temperature above 0"),
        ({"prompt": "a", "top_p": 0}, "above 0 and at most 1"),
        ({"prompt": "a", "stop": [""]}, "not empty"),
        ({"prompt": "a", "overflow": "chunk"}, "text-generation does not do"),
        ({"prompt": "{{ a }}", "variants": ["de"]}, "no template reads {{ variant }}"),
        ({"prompt": "{{ a }}", "variants": ["de"], "variants_as": "rows"}, "no template reads {{ variant }}"),
        ({"prompt": "{{ variant }}", "variants": ["de"]}, "reads a column"),
        ({"prompt": "{{ a }} {{ variant }}", "variants": ["de", "de"]}, "more than once"),
        ({"prompt": "{{ a }}", "variants": {"x": ["de"], "y": []}}, "one name with a list"),
        ({"prompt": "{{ a }}", "variants": {"no name": ["de"]}}, "a template cannot read it"),
        ({"prompt": "{{ a }}", "variants": [False]}, "valid string"),
        ({"messages": [{"role": "robot", "content": "{{ a }}"}]}, "has the role 'robot'"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "reads a column"),
    ],
)
def test_what_does_not_fit_a_model_that_writes_is_told(score: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        _writing(score)


def test_what_an_embedding_is_asked_for_reaches_the_spec(job: Path) -> None:
    asked = [
        'score.prompt="query: "',
        "score.dimensions=64",
        "score.quantization=int8",
        "score.ranges=[[0, -1], [1, 1]]",
    ]
    settings = load_settings(job, asked)
    options = settings.spec().options
    assert (options.prompt, options.dimensions, options.quantization) == ("query: ", 64, "int8")
    assert options.ranges == ((0.0, -1.0), (1.0, 1.0))
    assert settings.text_columns() == ("title",)
    assert read_spec(settings.spec().for_engine()).options.prompt == "query: "
    assert load_settings(job, ["score.prompt_name=query"]).spec().options.prompt_name == "query"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (["score.prompt=a", "score.prompt_name=b"], "give one"),
        (["score.task=text-classification", "score.prompt=a"], "takes text, not text and prompt"),
        (["score.task=text-classification", "score.dimensions=8"], "dimensions belong"),
        (["score.quantization=int8", "score.ranges=[[1], [0]]"], "two lists"),
    ],
)
def test_what_no_embedding_can_be_asked_for_is_told(job: Path, override: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(job, override)
