"""Spark's settings for clusters: the syntax, keys that exist, and slots that fit to the GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "conf/spark").glob("*.conf"))
assert len(FILES) >= 5
# Scala's objects that hold the settings of Spark and of its cluster managers; each registers its own as it is loaded.
_HOLDERS = [
    *("org.apache.spark.internal.config.package$", "org.apache.spark.internal.config.Network$"),
    *("org.apache.spark.internal.config.Python$", "org.apache.spark.sql.internal.SQLConf$"),
    *("org.apache.spark.deploy.yarn.config.package$", "org.apache.spark.deploy.k8s.Config$"),
]
# Settings that Spark puts together of a prefix and names of the user's own, so that no entry has them: the pages
# "Spark Configuration" (resources, executorEnv) and "Running Spark on Kubernetes" (volumes, driverEnv, node.selector).
_MADE_OF_NAMES = re.compile(
    r"spark\.(executor|driver)\.resource\.\w+\.(amount|discoveryScript|vendor)"
    r"|spark\.task\.resource\.\w+\.amount"
    r"|spark\.executorEnv\.\w+|spark\.kubernetes\.driverEnv\.\w+"
    r"|spark\.kubernetes\.node\.selector\.\S+"
    r"|spark\.kubernetes\.(driver|executor)\.volumes\.(persistentVolumeClaim|hostPath|emptyDir|nfs)\.[\w-]+"
    r"\.(mount\.(path|readOnly|subPath)|options\.\w+)"
)
_WITHOUT_ENTRY = {"spark.master"}  # what spark-submit reads itself
# Databricks' own: "Optimize performance with caching on Databricks".
_PROVIDERS = {"databricks.conf": {"spark.databricks.io.cache.enabled"}}


def _read(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.split(None, 1) for line in lines]
    assert all(len(pair) == 2 for pair in pairs), path
    assert len({key for key, _ in pairs}) == len(pairs), path
    return {key: value.strip() for key, value in pairs}


def unknown_keys(spark: Any, keys: set[str]) -> set[str]:
    """Those that are none of Spark's."""
    jvm = spark._jvm
    for holder in _HOLDERS:
        jvm.java.lang.Class.forName(holder)
    entry = jvm.org.apache.spark.internal.config.ConfigEntry
    plain = {key for key in keys if not _MADE_OF_NAMES.fullmatch(key)} - _WITHOUT_ENTRY
    return {key for key in plain if entry.findEntry(key) is None}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_key_is_one_of_sparks(spark: Any, path: Path) -> None:
    assert unknown_keys(spark, set(_read(path))) == _PROVIDERS.get(path.name, set())


def test_a_key_that_is_none_is_found(spark: Any) -> None:
    wrong = {"spark.executor.memoryOverhed", "spark.kubernetes.container.imag", "spark.task.resource.gpu.amounts"}
    assert unknown_keys(spark, {"spark.executor.memoryOverhead", "spark.yarn.queue", *wrong}) == wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_all_slots_of_an_executor_share_one_gpu(path: Path) -> None:
    told = _read(path)
    share, cores = float(told["spark.task.resource.gpu.amount"]), int(told.get("spark.executor.cores", 8))
    assert int(1 / share) == cores


def test_emrs_classifications_have_yarn_know_gpus() -> None:
    told = {each["Classification"]: each for each in json.loads((ROOT / "conf/spark/emr-gpu.json").read_text())}
    assert all(set(each) <= {"Classification", "Properties", "Configurations"} for each in told.values())
    assert told["yarn-site"]["Properties"]["yarn.resource-types"] == "yarn.io/gpu"
    assert "DominantResourceCalculator" in str(told["capacity-scheduler"])


def test_the_image_has_what_the_settings_name() -> None:
    text = (ROOT / "conf/spark/kubernetes.Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", text)
    steps = [line.split(None, 1) for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    assert {name for name, _ in steps} <= {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT"}
    told = _read(ROOT / "conf/spark/kubernetes.conf")
    assert told["spark.executor.resource.gpu.discoveryScript"].startswith("/opt/spark/")
    assert "COPY --from=spark /opt/spark /opt/spark" in text
    assert 'ENTRYPOINT ["/opt/entrypoint.sh"]' in text
    assert "WORKDIR /opt/gristmill" in text
    assert (ROOT / "jobs/score.py").exists()


def test_the_page_names_each_file() -> None:
    page = (ROOT / "conf/spark/README.md").read_text()
    assert all(f"({path.name})" in page for path in (ROOT / "conf/spark").iterdir() if path.name != "README.md")
    assert all((ROOT / "conf/spark" / target).exists() for target in re.findall(r"\]\(([^)#]+)\)", page))
