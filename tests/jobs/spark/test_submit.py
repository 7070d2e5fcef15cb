"""spark-submit: from the tree, and with the built zip where gristmill is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.conftest import LIGHT_JVM, ROOT

WriteJob = Callable[..., Path]
pytestmark = [pytest.mark.cluster, pytest.mark.long]
_CONF = ("--conf", "spark.ui.enabled=false", "--conf", f"spark.executor.extraJavaOptions={LIGHT_JVM}")


def _submit(*args: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run spark-submit on a cluster of one executor in a process of its own."""
    import pyspark

    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYSPARK_GATEWAY_PORT")}
    env |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"} | more
    return subprocess.run(
        [str(submit), "--master", "local-cluster[1,1,1024]", *_CONF, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def _check_output(folder: Path) -> None:
    table = ds.dataset(folder, format="parquet", partitioning="hive", exclude_invalid_files=True).to_table()
    assert sorted(table["id"].to_pylist()) == [1, 2, 3]
    assert sorted(table["outcome"].to_pylist()) == ["failed", "succeeded", "succeeded"]


# Python reads it at its start, on the driver and in the workers: an installed gristmill is not to be found.
_HIDE = """
import sys
from importlib.machinery import PathFinder

class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        found = PathFinder.find_spec(name, path) if name in ("jobs", "udfs") else None
        if found and ".zip" not in found.origin:
            raise ImportError(f"{name} is not to come from {found.origin}")
        return None

sys.meta_path.insert(0, Hide)
"""


def test_score_runs_from_the_tree(write_job: WriteJob, tmp_path: Path) -> None:
    done = _submit(ROOT / "jobs/score.py", write_job(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    _check_output(tmp_path / "out")


def test_score_runs_from_the_built_zip_where_gristmill_is_not_installed(write_job: WriteJob, tmp_path: Path) -> None:
    built = tmp_path / "dist"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = built.glob("gristmill-*.whl")
    archive = shutil.copy(wheel, tmp_path / "gristmill.zip")
    names = zipfile.ZipFile(archive).namelist()
    assert {"jobs/score.py", "udfs/factory.py", "jobs/spark/log4j2.properties"} <= set(names)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(ROOT / "jobs/score.py", elsewhere / "score.py")
    (elsewhere / "sitecustomize.py").write_text(_HIDE)
    hidden = _submit(elsewhere / "score.py", write_job(), cwd=elsewhere, PYTHONPATH=str(elsewhere))
    told = hidden.stdout + hidden.stderr  # spark-submit sends a driver's standard error to its standard output
    assert "is not to come from" in told or "No module named 'jobs'" in told
    done = _submit("--py-files", archive, elsewhere / "score.py", write_job(), cwd=elsewhere, PYTHONPATH=str(elsewhere))
    assert done.returncode == 0, done.stderr[-3000:]
    _check_output(tmp_path / "out")
