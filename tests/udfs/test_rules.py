"""The two rules of the house."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.models import make_encoder

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "udfs").rglob("*.py")
)
KNOWS_SPARK = "udfs.factory"


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_udfs_is_imported_and_scores_where_there_is_neither_pyspark_nor_jobs(tmp_path: Path) -> None:
    done = _run(f"""
import importlib, sys
for blocked in ("pyspark", "py4j", "jobs"):
    sys.modules[blocked] = None
for name in {[name for name in MODULES if name != KNOWS_SPARK]}:
    importlib.import_module(name)
import pyarrow as pa
from udfs.scoring import score
from udfs.spec import ScoreSpec
spec = ScoreSpec(task="feature-extraction", model={make_encoder(tmp_path)!r})
print(sum(len(r) for r in score([pa.array(["tea", None])], spec)), "rows")
""")
    assert "2 rows" in done.stdout, done.stderr


@pytest.mark.parametrize("name", [name for name in MODULES if name != KNOWS_SPARK])
def test_importing_a_module_brings_in_neither_torch_nor_transformers_nor_spark(name: str) -> None:
    done = _run(
        f"import sys, {name}; print([m for m in ('torch', 'transformers', 'pyspark', 'jobs') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_no_module_names_what_it_may_not_know(name: str) -> None:
    path = ROOT / Path(*name.split("."))
    tree = ast.parse(
        (path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py").read_text()
    )
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0] for module in named}
    assert "jobs" not in roots
    assert name == KNOWS_SPARK or "pyspark" not in roots
