"""Settings of jobs whose model is hosted: what does not fit is told by its key, before anything starts."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import keys
from jobs.cli import main
from jobs.errors import DeadlineReached, EndpointError, SettingsError
from jobs.hiding import hide
from jobs.job import check_report
from jobs.job_file import check_settings
from jobs.keys import find_key
from jobs.output.fingerprint import fingerprint
from jobs.preflight import check_client, check_model, tell_ignored_settings
from jobs.serving import list_specs
from jobs.settings import Settings
from jobs.telling.report import make_report
from udfs.errors import GristmillError
from udfs.hosted.endpoint import Endpoint

JOB: dict[str, Any] = {
    "input": {"path": "in.parquet"},
    "output": {"path": "out"},
    "score": {"task": "text-generation", "engine": "openai-batch", "model": "gpt-5-mini", "prompt": "Say {{ t }}"},
}


def _settings(*overrides: str) -> Settings:
    return check_settings(JOB, [*overrides], name="job")


def test_a_hosted_job_needs_no_files_of_a_model() -> None:
    settings = _settings("score.endpoint={price: {input: 0.25, output: 2, as_of: 2026-11-27}, poll_s: 5}")
    endpoint = settings.endpoint()
    assert endpoint is not None
    assert (endpoint.url, endpoint.key_env, endpoint.poll_s) == ("https://api.openai.com/v1", "OPENAI_API_KEY", 5)
    assert endpoint.price is not None
    assert (endpoint.price.output, endpoint.price.as_of) == (2, "2026-11-27")
    assert check_model(settings) is settings
    assert list_specs(settings) == []
    assert fingerprint(settings)["endpoint"]["engine"] == "openai-batch"
    assert "model_files" not in fingerprint(settings)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["score.max_tokens=100"], "score.max_tokens counts"),
        (["score.revision=abc"], "score.revision is for models"),
        (["score.precision=float16"], "score.precision is for models"),
        (["score.num_beams=3"], "score.num_beams is for"),
        (["batching.max_batch_tokens=100"], "batching.max_batch_tokens is for models"),
        (["batching.dedupe=false"], "batching.dedupe is false"),
        (["score.task=token-classification", "score.prompt=null", "score.text=t"], "score.task token-classification"),
        (["score.engine=openai-compatible"], "endpoint.base_url is missing"),
        (["score.endpoint.base_url=http://example.com"], "take https"),
        (["score.endpoint.base_url=https://example.com"], "endpoint.api_key_env"),
        (["score.engine=auto", "score.endpoint={}"], "score.endpoint is for openai-batch"),
        (["score.engine=auto", "limits.max_usd=3"], "limits.max_usd is for"),
        (["limits.max_usd=3"], "limits.max_usd needs score.endpoint.price"),
        (["limits.max_usd=3", "score.endpoint.price={}"], "price.input is missing"),
        (["score.endpoint.price.input=3"], "price.output is missing"),
        (
            [
                "limits.max_usd=3",
                "score.endpoint.price={input: 1, output: 2}",
                "score.endpoint.body={max_completion_tokens: null}",
            ],
            "limits.max_usd needs to know how long",
        ),
        (["score.endpoint.poll=3"], "score.endpoint.poll: there is no such key"),
        (["score.endpoint.price.inputs=3"], "score.endpoint.price.inputs: there is no such key"),
        (["score.engine=openai"], "score.engine"),
    ],
)
def test_what_does_not_fit_a_hosted_model_is_told_by_its_key(overrides: list[str], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _settings(*overrides)
    assert told in str(caught.value)


def test_prices_may_be_those_of_batches_alone_and_of_vectors_need_no_output() -> None:
    _settings("score.endpoint.price={batch_input: 1, batch_output: 2}")
    _settings("score.task=feature-extraction", "score.text=t", "score.prompt=null", "score.endpoint.price={input: 1}")
    bound = "score.endpoint.body={max_completion_tokens: null, max_tokens: 20}"
    _settings("limits.max_usd=3", "score.endpoint.price={input: 1, output: 2}", bound)


@pytest.mark.parametrize(
    "override",
    [
        "score.endpoint=sk-live-4242",
        "score.endpoint.api_key=sk-live-4242",
        "score.endpoint.api_key_env=sk-live-4242",
        "score.endpoint.api_key_env=[sk-live-4242]",
        "score.endpoint.organization={key: sk-live-4242}",
    ],
)
def test_a_key_that_somebody_wrote_down_is_not_repeated(override: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _settings(override)
    assert "sk-live" not in str(caught.value)


def test_a_schema_that_binds_loosely_is_warned_of() -> None:
    loose = "score.schema={type: object, properties: {a: {type: string}}}"
    assert any("beyond what openai-batch holds" in line for line in tell_ignored_settings(_settings(loose)))
    strict = "score.schema={type: object, required: [a], properties: {a: {type: string}}}"
    assert tell_ignored_settings(_settings(strict)) == []


def test_settings_of_another_engine_are_warned_of() -> None:
    assert tell_ignored_settings(_settings("score.endpoint.poll_s=5", "score.endpoint.organization=o")) == []
    (told,) = tell_ignored_settings(_settings("score.endpoint.requests_per_minute=5"))
    assert told == "score.endpoint.requests_per_minute is nothing that openai-batch reads"
    live = "score.endpoint={base_url: 'http://127.0.0.1:1', poll_s: 5, max_in_flight_tokens: 7, max_retries: 1}"
    assert len(tell_ignored_settings(_settings("score.engine=openai-compatible", live))) == 2
    (told,) = tell_ignored_settings(_settings("score.engine=anthropic-batch", "score.endpoint.organization=o"))
    assert "organization" in told


def test_a_missing_key_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="OPENAI_API_KEY is to hold the key of https"):
        check_client(Endpoint(engine="openai-batch"))


def test_a_key_in_the_place_of_its_variable_s_name_is_not_repeated() -> None:
    endpoint = Endpoint(engine="openai-batch", api_key_env="dapi0123456789abcdef0123")
    with pytest.raises(EndpointError, match=r"that endpoint\.api_key_env names") as caught:
        check_client(endpoint)
    assert "dapi" not in str(caught.value)


def test_a_client_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.hosted.clients.importlib.util.find_spec", lambda name: None)
    with pytest.raises(GristmillError, match=r"pip install 'gristmill\[anthropic\]'"):
        check_client(Endpoint(engine="anthropic-batch"))


def test_the_key_is_hidden_in_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-live-4242")
    assert hide("the header was sk-live-4242!", _settings()) == "the header was ***!"


@pytest.fixture
def databricks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], str]]:
    """Databricks' runtime, as far as secrets go."""
    held: dict[tuple[str, str], str] = {}

    def get(scope: str, key: str) -> str:
        return held[scope, key]

    runtime = types.ModuleType("databricks.sdk.runtime")
    runtime.dbutils = types.SimpleNamespace(secrets=types.SimpleNamespace(get=get))  # type: ignore[attr-defined]
    for name in ("databricks", "databricks.sdk"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    keys._read_secret.cache_clear()
    yield held
    keys._read_secret.cache_clear()


def test_a_secret_of_databricks_is_read_by_its_name(databricks: dict[tuple[str, str], str]) -> None:
    databricks["ml", "openai"] = "sk-secret-4242\n"
    settings = _settings("score.endpoint.api_key_secret=ml/openai")
    endpoint = settings.endpoint()
    assert endpoint is not None
    assert find_key(endpoint) == "sk-secret-4242"
    assert hide("sk-secret-4242", settings) == "***"
    assert "sk-secret" not in settings.model_dump_json() + repr(settings.spec())


def test_a_secret_that_is_not_there_is_told(databricks: dict[tuple[str, str], str]) -> None:
    with pytest.raises(EndpointError, match="no secret ml/openai"):
        find_key(Endpoint(engine="openai-batch", api_key_secret="ml/openai"))


def test_secrets_of_databricks_are_told_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", None)
    with pytest.raises(EndpointError, match="which this is not"):
        find_key(Endpoint(engine="openai-batch", api_key_secret="ml/other"))


def test_a_benchmark_of_a_provider_s_machines_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(JOB))
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(path)])
    assert ended.value.code == 2
    assert "a provider runs the model" in capsys.readouterr().err


def test_rows_that_expired_at_the_provider_are_not_laid_to_a_deadline() -> None:
    for override, told in (
        ("limits.deadline=null", "provider's batches ended"),
        ("limits.deadline=2h", "deadline came"),
    ):
        settings = _settings(override)
        report = make_report(
            settings,
            [],
            run_id="r",
            started_at=datetime.now(UTC),
            status="expired",
            command="score",
            left={"expired_rows": 3},
        )
        with pytest.raises(DeadlineReached, match=rf"{told}.*3 expired rows.*--only expired"):
            check_report(report, settings)
