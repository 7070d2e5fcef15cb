"""Texts for engines under test, and the rows that come of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.models import WORDS
from udfs.local import LocalEngine
from udfs.spec import ScoreSpec
from udfs.worker.scoring import score, score_with

HARMLESS = [word for word in WORDS if word != "poison"]
TEXTS = [" ".join((HARMLESS * 3)[start : start + 1 + start % 29]) + f" {start}" for start in range(60)]
Faults = Callable[..., Path]  # the fixture: plants a fault, returns the file with a line for each start


def rows_of(texts: list[str], spec: ScoreSpec) -> list[dict[str, Any]]:
    """Score by an engine in a process of its own."""
    return [row for result in score([pa.array(texts)], spec) for row in result.to_pylist()]


def undisturbed_rows(texts: list[str], spec: ScoreSpec) -> list[dict[str, Any]]:
    """Score by an engine in this process, which nothing befalls."""
    with LocalEngine(spec) as engine:
        return [row for result in score_with(engine, [pa.array(texts)], spec) for row in result.to_pylist()]


def codes_of(rows: list[dict[str, Any]]) -> list[str | None]:
    """Why each row failed; None where it did not."""
    return [row["error"] and row["error"]["code"] for row in rows]


def check_answers(rows: list[dict[str, Any]], texts: list[str], spec: ScoreSpec) -> None:
    """Rows without an error have the vectors of an engine that nothing befalls."""
    for row, sound in zip(rows, undisturbed_rows(texts, spec), strict=True):
        if row["error"] is None:
            np.testing.assert_allclose(row["embedding"], sound["embedding"], atol=1e-5)
