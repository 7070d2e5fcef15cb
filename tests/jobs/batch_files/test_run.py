"""Batch files as whole jobs: a line for each line, in the right file, whatever was killed or came too late."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.messages import MessageBatch
from openai.types import Batch

from jobs.batch_files.command import make_settings
from jobs.errors import DeadlineReached
from jobs.job import check_report
from jobs.job_file import load_settings
from jobs.run import retry, score
from tests.batch_soak import soak
from tests.conftest import MINILM, ROOT
from tests.fetch_smollm2 import TARGET
from tests.models import make_encoder
from tests.random_writers import save_writer
from tests.request_lines import anthropic_line, chat_line, openai_line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [f"writer={save_writer(folder / 'writer')}", f"encoder={make_encoder(folder / 'encoder')}"]


def _embed(custom_id: str, text: str = "tea") -> str:
    return openai_line({"model": "encoder", "input": text}, url="/v1/embeddings", custom_id=custom_id)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_each_line_has_one_line_in_the_file_where_it_belongs(spark: Any, models: list[str], tmp_path: Path) -> None:
    lines = [_embed(str(number)) for number in range(6)]
    lines[2:4] = ["{broken", openai_line({"model": "nobody"}, custom_id="3")]
    lines += ["", chat_line(), _embed("0")]
    (tmp_path / "in.jsonl").write_text("\r\n".join(lines))
    asked = make_settings(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), models=models)
    report = score(asked)
    good, bad = _read(tmp_path / "out.jsonl"), _read(tmp_path / "out.jsonl.errors")
    assert [line["custom_id"] for line in good] == ["0", "1", "4", "5", "a"]
    assert [line["custom_id"] for line in bad] == [None, "3", "0"]
    told = [line["error"] and line["error"]["code"] for line in bad]
    assert told == ["invalid_json_line", None, "duplicate_custom_id"]
    assert (report.rows, report.failed_by_code) == (8, {"bad_request": 2, "malformed": 1})
    summary = Batch.model_validate_json((tmp_path / "out.jsonl.batch.json").read_text(), strict=True)
    assert summary.status == "completed"
    assert summary.request_counts is not None
    assert (summary.request_counts.total, summary.request_counts.failed) == (8, 3)
    before = (tmp_path / "out.jsonl").read_bytes()
    assert score(asked).rows == 0  # all is done
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_what_came_too_late_expires_and_is_answered_by_a_retry(spark: Any, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(_embed(str(number)) for number in range(3)))
    where = str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")
    late = make_settings(*where, models=models, deadline="1s", overrides=["input.increment_bytes=1"])
    report = score(late)
    with pytest.raises(DeadlineReached):
        check_report(report, late)
    asked = make_settings(*where, models=models)
    score(asked)
    retry(asked)
    assert [line["custom_id"] for line in _read(tmp_path / "out.jsonl")] == ["0", "1", "2"]
    assert (tmp_path / "out.jsonl.errors").read_text() == ""


def test_a_body_of_messages_has_its_results(spark: Any, models: list[str], tmp_path: Path) -> None:
    requests = [json.loads(anthropic_line(custom_id=f"id-{number}")) for number in range(3)]
    requests[1]["params"]["typo"] = 1
    (tmp_path / "in.json").write_text(json.dumps({"requests": requests}, indent=1))
    score(make_settings(str(tmp_path / "in.json"), str(tmp_path / "out.jsonl"), models=models))
    text = (tmp_path / "out.jsonl").read_text()
    assert not text.endswith("\n")
    found = [json.loads(line) for line in text.split("\n")]
    assert [(line["custom_id"], line["result"]["type"]) for line in found] == [
        ("id-0", "succeeded"),
        ("id-1", "errored"),
        ("id-2", "succeeded"),
    ]
    summary = MessageBatch.model_validate_json((tmp_path / "out.jsonl.batch.json").read_text(), strict=True)
    assert (summary.request_counts.succeeded, summary.request_counts.errored) == (2, 1)


@pytest.mark.long
@pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_smollm2 brings the model")
@pytest.mark.parametrize(("dialect", "good"), [("openai", 9), ("anthropic", 9)])
def test_the_jobs_that_come_along_answer_their_ten_lines(spark: Any, dialect: str, good: int, tmp_path: Path) -> None:
    settings = load_settings(
        ROOT / f"conf/{dialect}_batch.yaml",
        [
            f"input.path={ROOT}/conf/samples/{dialect}_requests.jsonl",
            f"output.path={tmp_path}/out.jsonl",
            f"models={{gpt-4o-mini: {TARGET}, claude-haiku-4-5: {TARGET}, text-embedding-3-small: {MINILM!r}}}",
        ],
    )
    report = score(settings)
    assert (report.succeeded, report.rows) == (good, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_smollm2 brings the model")
def test_a_driver_that_is_killed_again_and_again_loses_no_line(tmp_path: Path) -> None:
    soak(tmp_path, int(os.environ.get("GRISTMILL_SOAK_LINES", "1000")), writer=str(TARGET))


def _write_yaml(path: Path, models: list[str], input_: dict[str, Any], output: dict[str, Any]) -> Path:
    import yaml

    named = dict(told.split("=", 1) for told in models)
    path.write_text(yaml.safe_dump({"input": input_, "output": output, "models": named}))
    return path


def test_a_batch_file_becomes_a_table(spark: Any, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(f"{_embed('a')}\n{openai_line({'model': 'nobody'}, custom_id='b')}")
    source = {"path": str(tmp_path / "in.jsonl"), "format": "openai-batch"}
    conf = _write_yaml(tmp_path / "job.yaml", models, source, {"path": str(tmp_path / "out")})
    score(load_settings(conf))
    rows = spark.read.parquet(str(tmp_path / "out")).orderBy("line").select("line", "outcome", "prediction.*").collect()
    assert [(row["custom_id"], row["status_code"], row["model"]) for row in rows] == [
        ("a", 200, "encoder"),
        ("b", 400, None),
    ]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_table_of_requests_becomes_a_results_file(
    spark: Any, models: list[str], tmp_path: Path, as_text: bool
) -> None:
    body: Any = {"model": "encoder", "input": "tea"}
    rows = [
        {"custom_id": str(n), "url": "/v1/embeddings", "body": json.dumps(body) if as_text else body} for n in range(3)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(tmp_path / "in.jsonl"), "format": "json"}
    output = {"path": str(tmp_path / "out.jsonl"), "format": "openai-batch"}
    score(load_settings(_write_yaml(tmp_path / "job.yaml", models, source, output)))
    found = _read(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in found) == ["0", "1", "2"]
    assert {line["response"]["status_code"] for line in found} == {200}
