"""Every job of conf/, scored by two checkouts: the same rows, the same labels and texts, the same numbers.

python -m tests.same_answers OLD_PYTHON OLD_CHECKOUT [CONF…]      e.g. ../before/.venv/bin/python ../before

Numbers may differ by 1e-6. A model that is on a hub alone is replaced by a random one of its kind; all in float32.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.conftest import ROOT
from tests.models import make_classifier, make_tagger

_CLOSE = 1e-6
_ANSWER = "prediction"
_ON_A_HUB: dict[str, Callable[[Path], str]] = {
    "feedback_sentiment.yaml": lambda path: make_classifier(path, ["negative", "neutral", "positive"]),
    "ticket_entities.yaml": lambda path: make_tagger(path, ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]),
}


def main() -> None:
    """Compare, and end with 1 where something is not the same."""
    old_python, old_root = sys.argv[1], Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder:
        confs = sys.argv[3:] or [path.name for path in sorted((ROOT / "conf").glob("*.yaml"))]
        wrong = [conf for conf in confs if not _compare(conf, Path(folder, conf), old_python, old_root)]
    sys.exit(f"not the same: {', '.join(wrong)}" if wrong else 0)


def _compare(conf: str, place: Path, old_python: str, old_root: Path) -> bool:
    more = [f"score.model={_ON_A_HUB[conf](place / 'model')}", "score.revision=null"] if conf in _ON_A_HUB else []
    before = _score(old_python, old_root, conf, place / "before", more)
    after = _score(sys.executable, ROOT, conf, place / "after", more)
    difference = _find_difference(before, after)
    print(f"{conf}: {len(after)} rows, {difference or 'the same'}", flush=True)
    return difference is None


def _score(python: str, root: Path, conf: str, out: Path, more: list[str]) -> list[dict[str, Any]]:
    """The rows of a checkout's job, sorted by what they keep of the input."""
    options = [f"output.path={out}", f"output.name={_ANSWER}", "score.precision=float32", *more]
    sets = [part for option in options for part in ("--set", option)]
    command = [python, "-c", "from jobs.cli import main; main()", "score", f"conf/{conf}", *sets]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{conf} in {root} ended with {done.returncode}: {done.stderr[-2000:]}")
    rows = pq.read_table(out).to_pylist()
    for row in rows:  # which engine scored a row, and what its neighbours spared it, differs from run to run
        row[_ANSWER].pop("engine")
        row[_ANSWER]["usage"] = {name: row[_ANSWER]["usage"][name] for name in ("input_tokens", "output_tokens")}
    return sorted(rows, key=lambda row: str([value for name, value in row.items() if name != _ANSWER]))


def _find_difference(before: Any, after: Any, where: str = "") -> str | None:
    """The first place where two answers are not the same; None where they are."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        parts = [(f"{where}.{name}", before[name], after[name]) for name in before]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        parts = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    elif isinstance(before, float) and isinstance(after, float):
        return None if math.isclose(before, after, rel_tol=0, abs_tol=_CLOSE) else f"{where} was {before}, is {after}"
    else:
        return None if before == after else f"{where} was {before!r}, is {after!r}"
    return next((found for place, a, b in parts if (found := _find_difference(a, b, place))), None)


if __name__ == "__main__":
    main()
