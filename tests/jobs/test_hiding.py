"""Passwords among Spark's options are in nothing that a run leaves or says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError, OutputError, SettingsError
from jobs.hiding import hide, hiding, is_secret, without_secrets
from jobs.job_file import load_settings
from jobs.output.directory import Output

WriteJob = Callable[..., Path]
SECRET, OTHER = "hunter2-0815", "correct-horse"
URL = f"jdbc:postgresql://db:5432/shop?user=me&password={SECRET}&ssl=true"

JOB = "_gristmill/job.json"


def _options(secret: str = SECRET, **more: Any) -> dict[str, Any]:
    return {"options": {"password": secret, "fs.s3a.access.key": secret, "header": True, **more}}


def _left(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("password", "sfPassword", "fs.s3a.secret.key", "fs.s3a.access.key", "api_key")),
        *(
            (name, True)
            for name in (
                "header.Authorization",
                "fs.azure.account.key.x",
                "oauth.token",
                "fs.azure.sas.fixed",
                "credentials",
                "pwd",
            )
        ),
        *((name, False) for name in ("header", "url", "dbtable", "passthrough", "basePath", "disaster", "maxTokens")),
        ("fs.s3a.aws.credentials.provider", False),
        ("spark.security.credentials.hive.enabled", False),
    ],
)
def test_secrets_are_known_by_their_names(name: str, secret: bool) -> None:
    assert is_secret(name) == secret


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (URL, "jdbc:postgresql://db:5432/shop?user=me&password=***&ssl=true"),
        (f"s3a://AKIA:{SECRET}@bucket/in", "s3a://***@bucket/in"),
        ("s3a://bucket/in@5", "s3a://bucket/in@5"),
        ("SELECT 1", "SELECT 1"),
        ("/data/token=a/day=1", "/data/token=a/day=1"),
        ("AccountName=me;AccountKey=abc==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("https://x/y?X-Amz-Signature=abc&z=1", "https://x/y?X-Amz-Signature=***&z=1"),
        ("jdbc:x://u:p@ss@h/db", "jdbc:x://***@h/db"),
        ("jdbc:oracle:thin:scott/tiger@//db:1521/x", "jdbc:oracle:thin:***@//db:1521/x"),
        ("jdbc:oracle:thin:@//db:1521/x", "jdbc:oracle:thin:@//db:1521/x"),
    ],
)
def test_passwords_inside_of_a_text_are_taken_out(text: str, told: str) -> None:
    assert without_secrets(text) == told


def test_an_output_holds_no_secret_and_a_new_password_is_no_other_job(write_job: WriteJob, tmp_path: Path) -> None:
    output = Output(load_settings(write_job(input=_options(url=URL))))
    output.begin()
    assert SECRET not in _left(tmp_path / "out")
    rotated = Output(load_settings(write_job(input=_options(OTHER, url=URL.replace(SECRET, OTHER)))))
    rotated.check(object(), overwrite=False)  # type: ignore[arg-type]  # files need no session
    other = Output(load_settings(write_job(input=_options(url=URL, header=False))))
    with pytest.raises(OutputError, match=r"differs in input.options"):
        other.check(object(), overwrite=False)  # type: ignore[arg-type]


def test_an_output_with_secrets_in_clear_is_mended_by_the_next_run(write_job: WriteJob, tmp_path: Path) -> None:
    settings = load_settings(write_job(input=_options(url=URL)))
    output = Output(settings)
    output.begin()
    held = output.folder.read_json(JOB)
    held["job"]["input.options"] = settings.input.model_dump(mode="json")["options"]
    output.folder.write_json(JOB, {name: value for name, value in held.items() if name != "key"})
    assert SECRET in _left(tmp_path / "out")
    output.check(object(), overwrite=False)  # type: ignore[arg-type]
    output.begin()
    assert SECRET not in _left(tmp_path / "out")
    output.check(object(), overwrite=False)  # type: ignore[arg-type]
    assert json.dumps(output.folder.read_json(JOB)["job"]["input.options"]).count("header") == 1


def test_errors_and_reports_tell_no_secret(write_job: WriteJob) -> None:
    settings = load_settings(write_job(input=_options(url=URL), spark={"conf": {"spark.my.token": OTHER}}))
    with pytest.raises(JobError) as error, hiding(settings):
        raise JobError(f"cannot connect to {URL} as {OTHER}")
    assert str(error.value) == "cannot connect to jdbc:postgresql://db:5432/shop?user=me&password=***&ssl=true as ***"
    assert hide("nothing to hide", settings) == "nothing to hide"


def test_a_mistake_in_a_secret_does_not_show_it(write_job: WriteJob) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(write_job(input={"options": {"password": [SECRET]}}))
    assert "input.options.password" in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(SettingsError, match=r"max_tokens: .* \(it is 0\)"):
        load_settings(write_job(score={"max_tokens": 0}))
