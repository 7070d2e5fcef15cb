"""What the import contracts in pyproject.toml cannot tell: what is there once everything is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
from udfs.worker.scoring import score
from udfs.tasks.registry import make_spec
spec = make_spec(task="feature-extraction", model={make_encoder(tmp_path)!r})
print(sum(len(r) for r in score([pa.array(["tea", None])], spec)), "rows")
""")
    assert "2 rows" in done.stdout, done.stderr


def test_importing_brings_in_neither_torch_nor_transformers_nor_spark() -> None:
    done = _run(f"""
import importlib, sys
for name in {[name for name in MODULES if name != KNOWS_SPARK]}:
    importlib.import_module(name)
print([m for m in ("torch", "transformers", "pyspark", "jobs") if m in sys.modules])
""")
    assert done.stdout.strip() == "[]", done.stderr
