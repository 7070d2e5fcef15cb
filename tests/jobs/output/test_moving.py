"""How increments get into a table, with a table that is pretended: marks, kills, retries, what is gone, `--overwrite`.

Those of Delta and Iceberg are in `test_tables.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError, OutputError
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.output.merging import WAS, count_unkeyed, merge_statement, one_of_each
from jobs.output.tables import Transaction
from jobs.run import retry, score
from jobs.settings import InputSettings, Settings
from jobs.spark.session import spark_conf
from jobs.telling.totals import read_totals
from tests.models import make_encoder

WriteJob = Callable[..., Path]


class Pretended:
    """A table that is a list of rows and knows its transactions, as Delta does."""

    format = "delta"

    def __init__(self) -> None:
        self.place, self.rows, self.schema, self.done = "the table", list[Any](), None, set[str]()
        self.broken = False

    def exists(self) -> bool:
        return self.schema is not None

    def read(self) -> Any:
        return self._spark().createDataFrame(self.rows, self.schema)

    def create(self, schema: Any) -> None:
        self.schema = schema

    def check_merges(self, key: list[str]) -> None:
        pass

    def put(self, rows: Any, transaction: Transaction, *, replaces: bool = False) -> None:
        if self.broken:
            rows.select("no such column").collect()
        if transaction.name in self.done:
            return
        columns = [name for name in (self.schema or rows.schema).names if name != WAS] if not replaces else None
        kept = rows.select(columns) if columns else rows
        self.rows = [*([] if replaces else self.rows), *(tuple(row) for row in kept.collect())]
        self.schema = kept.schema
        self.done.add(transaction.name)

    def empty(self, schema: Any) -> None:
        self.rows, self.schema = [], schema

    def told(self) -> list[tuple[int, str, int]]:
        names = self.schema.names  # type: ignore[attr-defined]
        told = (dict(zip(names, row, strict=True)) for row in self.rows)
        return sorted((row["id"], row["outcome"], row["increment"]) for row in told)

    @staticmethod
    def _spark() -> Any:
        from pyspark.sql import SparkSession

        return SparkSession.active()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    made = Pretended()
    monkeypatch.setattr("jobs.output.directory.open_table", lambda *_: made)
    return made


@pytest.fixture
def settings(write_job: WriteJob, tmp_path: Path) -> Settings:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/0.jsonl", (1, "a"), (2, None))
    _write(tmp_path / "in/1.jsonl", (3, "b"))
    return load_settings(
        write_job(
            input={"path": str(tmp_path / "in"), "increment_bytes": 1, "key": ["id"]},
            output={"format": "delta", "columns": ["id"]},
            score={"model": make_encoder(tmp_path / "model")},
        )
    )


def _write(path: Path, *rows: tuple[int, str | None]) -> None:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in rows))
    os.utime(path, (int(path.stem), int(path.stem)))  # increments are in the files' order


@pytest.mark.long
def test_what_is_marked_gets_into_the_table_once_by_whoever_comes_next_and_a_retry_finds_what_failed(
    spark: Any, settings: Settings, table: Pretended, tmp_path: Path
) -> None:
    table.broken = True
    with pytest.raises(JobError, match=r"increment 0 is scored and kept, and cannot be written to .*out: "):
        score(settings)
    assert [mark.moved for mark in Output(settings).marks()] == [False]
    table.broken = False
    assert score(settings).rows == 1
    assert table.told() == [(1, "succeeded", 0), (2, "failed", 0), (3, "succeeded", 1)]
    output = Output(settings)
    assert [(mark.moved, len(mark.files)) for mark in output.marks()] == [(True, 1), (True, 0)]
    assert not list((tmp_path / "out.gristmill/_gristmill/writing").rglob("*.parquet"))
    _write(tmp_path / "in/0.jsonl", (1, "a"), (2, "mended"))
    assert retry(settings).succeeded == 1
    assert table.told()[-1] == (3, "succeeded", 1)
    assert (2, "succeeded", 1_000_000) in table.told()
    assert retry(settings).rows == 0
    totals = read_totals(settings.output.path)  # the state is found beside
    assert (totals.rows, totals.succeeded, totals.failed) == (3, 3, 0)


@pytest.mark.long
def test_an_overwritten_table_loses_its_rows_with_the_first_increment_and_not_before(
    spark: Any, settings: Settings, table: Pretended, tmp_path: Path
) -> None:
    score(settings)
    before = table.told()
    (tmp_path / "in/0.jsonl").write_text("")
    (tmp_path / "in/1.jsonl").write_text("")
    _write(tmp_path / "in/2.jsonl", (9, "z"))
    table.broken = True
    with pytest.raises(JobError, match="cannot be written to"):
        score(settings, overwrite=True)
    assert table.told() == before
    table.broken = False
    score(settings)
    assert [key for key, _, _ in table.told()] == [9]
    table.schema = None
    with pytest.raises(OutputError, match="the table is gone, and increments of this job are in it"):
        score(settings)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["struct", "flat"])
def test_what_is_gone_gets_into_a_table_with_the_columns_of_what_comes(
    layout: str, spark: Any, settings: Settings, table: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(frame: Any, _: Any) -> tuple[Any, Any]:
        return frame, spark.createDataFrame([(1,), (2,)], "id int")

    monkeypatch.setattr("jobs.increments.scoring.part_changes", part)
    query = InputSettings(query="SELECT * FROM VALUES (1, 'a') AS t(id, text)", key=["id"])
    output = settings.output.model_copy(update={"mode": "merge", "layout": layout})
    score(settings.model_copy(update={"input": query, "output": output}))
    assert table.told() == [(1, "succeeded", 0), (2, "deleted", 0)]
    names = table.schema.names  # type: ignore[attr-defined]
    assert ("embedding" in names, "prediction" in names) == (layout == "flat", layout == "struct")


def test_of_each_key_one_row_is_merged_and_what_failed_alone_is_mended(spark: Any) -> None:
    rows = [(1, "failed"), (1, "succeeded"), (2, "failed"), (None, "failed"), (None, "failed")]
    frame = spark.createDataFrame(rows, "`a b` int, outcome string")
    assert count_unkeyed(frame, ["a b"]) == (1, 2)
    kept = sorted(map(tuple, one_of_each(frame, ["a b"]).collect()), key=str)
    assert kept == [(1, "succeeded"), (2, "failed"), (None, "failed"), (None, "failed")]
    statement = merge_statement("t", ["a b", "outcome", "increment"], ["a b"])
    assert "ON t.`a b` = s.`a b` WHEN MATCHED AND s.outcome = 'deleted' THEN DELETE" in statement
    mended = merge_statement("t", ["a b", "outcome", "increment", WAS], ["a b"])
    assert f"t.outcome = 'failed' AND t.increment = s.{WAS} THEN UPDATE" in mended
    assert "INSERT" not in mended


def test_a_table_of_a_session_without_its_format_is_refused_before_anything_is_written(
    spark: Any, settings: Settings, tmp_path: Path
) -> None:
    with (
        spark_conf(spark, {"spark.sql.shuffle.partitions": "2"}),
        pytest.raises(OutputError, match="Spark knows no format delta: its classes are not there; name them in"),
    ):
        score(settings)
    assert not (tmp_path / "out.gristmill").exists()
    assert not (tmp_path / "out").exists()
