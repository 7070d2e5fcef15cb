"""The bundle for Databricks: by its own library's types, and what it names is there."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conf.test_spark import _read
from tests.conftest import ROOT

jobs = pytest.importorskip("databricks.bundles.jobs")
# Of the page "Databricks Asset Bundle configuration".
_TOP = {"bundle", "include", "sync", "artifacts", "variables", "workspace", "permissions", "resources", "targets"}


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "databricks.yml").read_text())


def _job(bundle: dict[str, Any]) -> Any:
    return jobs.Job.from_dict(bundle["resources"]["jobs"]["gristmill"])


def test_the_bundle_is_of_the_types_that_databricks_library_has(bundle: dict[str, Any]) -> None:
    assert set(bundle) <= _TOP
    score, look = _job(bundle).tasks
    assert score.python_wheel_task.package_name == "gristmill"
    assert [look.notebook_task.notebook_path, look.depends_on[0].task_key] == ["./notebooks/run_job.ipynb", "score"]
    assert str(_job(bundle).job_clusters[0].new_cluster.num_workers) == "${var.workers}"
    bundle = json.loads(json.dumps(bundle))
    bundle["resources"]["jobs"]["gristmill"]["tasks"][0]["python_wheel_tusk"] = {}
    with pytest.raises(ValueError, match="python_wheel_tusk"):
        _job(bundle)


def test_what_the_bundle_names_is_there(bundle: dict[str, Any]) -> None:
    text = (ROOT / "databricks.yml").read_text()
    known = {f"var.{name}" for name in bundle["variables"]} | {"workspace.file_path"}
    assert set(re.findall(r"\$\{([^}]+)\}", text)) <= known
    named = re.findall(r"\$\{workspace\.file_path\}/(\S+)", text) + re.findall(r"\./(notebooks/\S+)", text)
    assert len(named) >= 4
    assert all((ROOT / path).is_file() for path in named)


def test_the_bundles_cluster_has_the_settings_of_the_conf_file(bundle: dict[str, Any]) -> None:
    (cluster,) = _job(bundle).job_clusters
    assert dict(cluster.new_cluster.spark_conf) == _read(ROOT / "conf/spark/databricks.conf")


def test_the_init_script_is_bash_and_brings_the_torch_of_the_tests() -> None:
    script = ROOT / "conf/databricks/init.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert re.findall(r"torch==[\d.]+", script.read_text()) == re.findall(
        r"torch==[\d.]+", (ROOT / ".ci/run").read_text()
    )


def test_the_wheel_that_the_bundle_builds_has_the_entry_point_which_takes_the_tasks_parameters(
    bundle: dict[str, Any], tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("gristmill-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        told = configparser.ConfigParser()
        told.read_string(archive.read(name).decode())
    task = _job(bundle).tasks[0].python_wheel_task
    module, _, function = told["console_scripts"][task.entry_point].partition(":")
    # As a wheel task does: the parameters are the command line, and the function is called; a success returns.
    code = f"import sys; sys.argv[1:] = sys.argv[2:]; from {module} import {function}; {function}(); print('returned')"
    for parameters, ends in ((["--help"], 0), ([*task.parameters, "--set", "score.task=x"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, "-", *(_fill(str(value), tmp_path) for value in parameters)],
            env={**os.environ, "PYTHONPATH": str(wheel)}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == ends, done.stderr
        assert ("returned" in done.stdout) == (ends == 0)
    assert "conf/catalog_tagging.yaml has 1 mistake(s)" in done.stderr
    assert json.loads((tmp_path / "out.result.json").read_text())["status"] == "refused"


def _fill(value: str, folder: Path) -> str:
    """A parameter as the bundle fills it in."""
    told = {"${var.conf}": str(ROOT / "conf/catalog_tagging.yaml"), "${var.output}": str(folder / "out")}
    told["${var.input}"] = str(ROOT / "conf/samples/catalog.jsonl")
    for name, filled in told.items():
        value = value.replace(name, filled)
    return value
