"""What the dry run shows of CSV files is what a run reads, and what does not fit is told."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.job_file import load_settings
from jobs.telling.dry_run import show_plan


@pytest.mark.long
def test_the_dry_run_reads_csv_by_header_and_tells_what_does_not_fit(
    spark: Any, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text('id,text\nkey-1,"two\nlines"\nmalformed-row\n')
    (tmp_path / "in/b.csv").write_text("text,id\na kettle,key-2\n")
    source = {"path": str(tmp_path / "in"), "format": "csv", "options": {"header": True}}
    told = io.StringIO()
    show_plan(load_settings(write_job(input=source)), Console(file=told, width=300))
    shown = told.getvalue()
    assert "a kettle" in shown
    assert "key-" not in shown
    assert "malformed-row" not in shown
    assert "1 records are malformed" in shown
    assert "3 rows" in shown
