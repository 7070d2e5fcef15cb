"""Jobs whose model is of a registry: one version a run, never two in an output, and no secret of the registry's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from huggingface_hub import constants

from jobs.batch_files.command import make_settings
from jobs.errors import OutputError
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.preflight import check_model
from jobs.run import retry, score
from jobs.serving import serve
from jobs.telling.inspection import inspect_model
from tests.conftest import LIGHT_JVM, ROOT
from tests.models import make_encoder
from tests.random_writers import save_writer
from tests.registries import Registry, open_registry, use_home
from tests.request_lines import openai_line
from udfs.model.files import open_model

pytest.importorskip("mlflow")
WriteJob = Callable[..., Path]
_HOME = Path(constants.HF_HOME)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    open_model.cache_clear()
    return open_registry(tmp_path / "registry", monkeypatch)


def test_an_alias_that_moves_between_runs_is_refused_with_the_way_to_go_on(
    spark: Any,
    registry: Registry,
    write_job: WriteJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_home(_HOME, monkeypatch)  # as the session's workers have it, which began before
    request.addfinalizer(lambda: shutil.rmtree(_HOME / "gristmill/models--moving-in-a-test", ignore_errors=True))
    registry.add_sentences("moving-in-a-test", make_encoder(tmp_path / "one"), alias="champion")
    job = write_job(score={"model": "models:/moving-in-a-test@champion"})
    report = score(load_settings(job))
    assert (report.model, report.succeeded) == ("models:/moving-in-a-test/1", 2)
    registry.add_sentences("moving-in-a-test", make_encoder(tmp_path / "two", hidden_act="relu"), alias="champion")
    told = (
        r"by models:/moving.*/1, and this is models:/moving.*/2: --set score.model=models:/moving-in-a-test/1 goes on"
    )
    for work in (score, retry):
        with pytest.raises(OutputError, match=told):
            work(load_settings(job))
    assert score(load_settings(job, ["score.model=models:/moving-in-a-test/1"])).status == "completed"
    assert score(load_settings(job), overwrite=True).model == "models:/moving-in-a-test/2"


def test_an_alias_is_looked_up_once_a_run_and_anew_in_the_next(
    registry: Registry, write_job: WriteJob, tmp_path: Path
) -> None:
    registry.add_sentences("embedder", make_encoder(tmp_path / "one"), alias="champion")
    settings = load_settings(write_job(score={"model": "models:/embedder@champion"}))
    pinned = check_model(settings)
    registry.add_sentences("embedder", make_encoder(tmp_path / "two"), alias="champion")
    assert (pinned.score.model, pinned.spec().model) == ("models:/embedder/1", "models:/embedder/1")
    assert check_model(settings).score.model == "models:/embedder/2"


def test_models_of_batch_files_are_pinned_too(registry: Registry, tmp_path: Path) -> None:
    registry.add_sentences("embedder", make_encoder(tmp_path / "one"), alias="champion")
    told = {"task": "text-generation", "components": [], "model_binary": "model"}
    registry.add("writer", {"transformers": told}, {"model": save_writer(tmp_path / "writer")}, alias="best")
    (tmp_path / "in.jsonl").write_text(openai_line({"model": "e", "input": "tea"}, url="/v1/embeddings") + "\n")
    models = ["e=models:/embedder@champion", "w=models:/writer@best"]
    pinned = check_model(make_settings(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), models=models))
    assert pinned.models == {"e": "models:/embedder/1", "w": "models:/writer/1"}
    registry.add_sentences("embedder", make_encoder(tmp_path / "two"), alias="champion")
    embedder, writer = serve(pinned).models
    assert embedder.embed is not None
    assert embedder.embed.model == "models:/embedder/1"
    assert writer.write is not None
    assert str(writer.write.revision).startswith("mlflow-")


def test_a_registered_model_is_inspected(registry: Registry, tmp_path: Path) -> None:
    registry.add_sentences("embedder", make_encoder(tmp_path / "one"), alias="champion")
    found = inspect_model("models:/embedder@champion")
    assert "feature-extraction" in found.tasks


def test_volumes_and_hub_uris_are_the_same_job_as_their_plain_names(write_job: WriteJob, tmp_path: Path) -> None:
    model = make_encoder(tmp_path / "model")
    plain = check_model(load_settings(write_job(score={"model": model})))
    assert check_model(load_settings(write_job(score={"model": f"file://{model}"}))) == plain
    assert Output(plain).path == str(tmp_path / "out")


_SECRETS = {"MLFLOW_TRACKING_TOKEN": "tok-9f8e7d", "MLFLOW_TRACKING_PASSWORD": "pass-9f8e7d"}


@pytest.mark.long
@pytest.mark.cluster
def test_executors_elsewhere_get_the_model_from_the_driver_and_nothing_of_the_registry(
    registry: Registry, write_job: WriteJob, tmp_path: Path
) -> None:
    registry.add_sentences("embedder", make_encoder(tmp_path / "one"), alias="champion")
    conf = {
        "spark.ui.enabled": False,
        "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": LIGHT_JVM,
        "spark.executorEnv.HF_HOME": str(tmp_path / "nowhere"),  # an executor's own, which holds nothing
        "spark.eventLog.enabled": True,
        "spark.eventLog.dir": (tmp_path / "events").as_uri(),
        "spark.eventLog.compress": False,
    }
    (tmp_path / "events").mkdir()
    job = write_job(
        score={"model": "models:/embedder@champion"}, spark={"master": "local-cluster[1,2,1024]", "conf": conf}
    )
    done = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "score", str(job)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **_SECRETS}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    rows = ds.dataset(tmp_path / "out", format="parquet", partitioning="hive").to_table().to_pylist()
    assert {row["id"]: row["outcome"] for row in rows} == {1: "succeeded", 2: "failed", 3: "succeeded"}
    (report,) = (tmp_path / "out/_gristmill/runs").iterdir()
    assert json.loads(report.read_text())["model"] == "models:/embedder/1"
    left = [path for folder in ("out", "events") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(left) > 5
    told = done.stdout + done.stderr + "".join(path.read_text(errors="replace") for path in left)
    assert not [secret for secret in _SECRETS.values() if secret in told]
