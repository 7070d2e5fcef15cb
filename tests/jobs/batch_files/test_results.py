from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.batch_files.results import _committed
from jobs.job_file import load_settings
from jobs.output.committed import Committed, name_of
from jobs.output.directory import Output


def test_lines_are_made_of_what_is_committed_and_of_nothing_that_lies_beside(
    spark: Any, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    settings = load_settings(write_job())
    output = Output(settings)
    output.begin()
    rows = spark.createDataFrame([(1, "succeeded"), (2, "failed")], "line INT, outcome STRING")
    output.frames.write(rows, "draft")
    output.commit("draft", 0, counts=Committed(rows=2), run_id="run")
    whole = tmp_path / "out" / name_of(0)
    shutil.copytree(whole, tmp_path / "out" / name_of(1))  # of a driver that had lost its output
    (file,) = (whole / "outcome=failed").glob("*.parquet")
    shutil.copy(file, file.with_name("part-late.parquet"))
    found = _committed(spark, settings).select("line", "outcome", "increment").collect()
    assert sorted(map(tuple, found)) == [(1, "succeeded", 0), (2, "failed", 0)]
