"""An output as others read it: each reader finds the rows that Spark finds, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.job_file import load_settings
from jobs.run import retry, score


@pytest.mark.long
def test_every_reader_finds_the_same_rows_after_a_retry(
    spark: Any, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number, texts in enumerate((["a", None], ["b", "long " * 60])):
        lines = [json.dumps({"id": 10 * number + i, "text": text}) + "\n" for i, text in enumerate(texts)]
        (tmp_path / f"in/{number}.jsonl").write_text("".join(lines))

    def job(**how: Any) -> Any:
        source = {"path": str(tmp_path / "in"), "increment_bytes": 1}
        return load_settings(write_job(input=source, score={"max_tokens": 16, **how}, limits={"max_error_rate": 1}))

    score(job(overflow="fail"))
    retry(job(overflow="fail"), again=True)
    out = tmp_path / "out"
    wanted = Counter((row["id"], row["outcome"]) for row in spark.read.parquet(str(out)).collect())
    assert wanted == Counter({(0, "succeeded"): 1, (1, "failed"): 1, (10, "succeeded"): 1, (11, "failed"): 1})
    pattern = f"{out}/**/*.parquet"
    found = {
        "DuckDB": duckdb.sql(f"SELECT id, outcome FROM read_parquet('{pattern}', hive_partitioning = true)").fetchall(),
        "Polars": pl.scan_parquet(pattern, hive_partitioning=True).select("id", "outcome").collect().rows(),
        "pandas": pd.read_parquet(out)[["id", "outcome"]].itertuples(index=False, name=None),
        "pyarrow.dataset": _pairs(ds.dataset(out, partitioning="hive").to_table()),
        "pyarrow.parquet": _pairs(pq.read_table(out)),
    }
    assert {name: Counter(rows) for name, rows in found.items()} == dict.fromkeys(found, wanted)
    for increment in out.glob("increment=*"):  # whoever lists a directory finds rows alone
        frame = pl.scan_parquet(increment, hive_partitioning=True).select("id").collect()
        assert frame.height == sum(1 for _ in pd.read_parquet(increment)["id"])


def _pairs(table: Any) -> list[tuple[int, str]]:
    return [(row["id"], row["outcome"]) for row in table.select(["id", "outcome"]).to_pylist()]
