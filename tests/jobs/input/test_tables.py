"""Tables whose log is read as a stream by their own format, as Delta's is.

Delta does not come with Spark: here a directory of ORC files takes its place, read by Spark's ORC stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import settings as job_settings
from jobs.errors import OutputError
from jobs.increments import sizing
from jobs.input import sources
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.run import retry, score
from jobs.settings import Settings

pytestmark = pytest.mark.long

WriteJob = Callable[..., Path]


@pytest.fixture
def table(
    spark: Any, monkeypatch: pytest.MonkeyPatch, write_job: WriteJob, tmp_path: Path
) -> Iterator[Callable[..., Settings]]:
    monkeypatch.setattr(sources, "_STREAMING", ("orc",))
    monkeypatch.setattr(job_settings, "FILE_FORMATS", frozenset({"json"}))
    spark.conf.set("spark.sql.streaming.schemaInference", "true")

    def make(**sections: dict[str, Any]) -> Settings:
        source = {"path": str(tmp_path / "table"), "format": "orc", "key": ["id"], **sections.pop("input", {})}
        return load_settings(write_job(input=source, **sections))

    yield make
    spark.conf.unset("spark.sql.streaming.schemaInference")


def _append(spark: Any, tmp_path: Path, *rows: tuple[int, str]) -> None:
    frame = spark.createDataFrame(rows, "id int, text string").coalesce(1)
    frame.write.format("orc").mode("append").save(str(tmp_path / "table"))


def _succeeded(spark: Any, tmp_path: Path) -> Counter[int]:
    rows = spark.read.parquet(str(tmp_path / "out")).where("outcome = 'succeeded'").collect()
    return Counter(row["id"] for row in rows)


def test_what_was_appended_to_a_table_is_scored_and_nothing_twice(
    spark: Any, table: Callable[..., Settings], tmp_path: Path
) -> None:
    _append(spark, tmp_path, (1, "a red kettle"), (2, "a spade"))
    _append(spark, tmp_path, (3, "a book"))
    first = score(table(input={"increment_bytes": 1}))
    assert (first.status, first.rows, first.increments) == ("completed", 3, 2)
    assert score(table(input={"increment_bytes": 1})).rows == 0
    _append(spark, tmp_path, (4, "tea"), (5, "soil"))
    assert score(table()).rows == 2
    assert _succeeded(spark, tmp_path) == Counter([1, 2, 3, 4, 5])


def test_increments_of_a_table_grow_by_the_rate_of_those_that_were_full(
    spark: Any, table: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sizing, "TABLE_SAMPLE_BYTES", 1)  # a file each
    for number in range(6):
        _append(spark, tmp_path, (number, "a red kettle"))
    report = score(table())
    assert (report.status, report.rows, report.increments) == ("completed", 6, 3)  # the second one told of the first
    assert _succeeded(spark, tmp_path) == Counter(range(6))
    assert score(table()).rows == 0


def test_columns_of_another_type_than_in_the_output_are_refused(
    spark: Any, table: Callable[..., Settings], tmp_path: Path
) -> None:
    _append(spark, tmp_path, (1, "a red kettle"))
    settings = table(output={"columns": ["id"]})
    score(settings)
    Output(settings).check_input(spark.createDataFrame([], "id int, text binary, more string"), "table")
    with pytest.raises(OutputError, match=r"\(id is bigint and was int\): no reader"):
        Output(settings).check_input(spark.createDataFrame([], "id bigint, text string"), "table")


def test_what_is_left_of_a_table_is_told_in_rows_before_a_deadline(
    spark: Any, table: Callable[..., Settings], tmp_path: Path
) -> None:
    for number in range(3):
        _append(spark, tmp_path, (2 * number, "a red kettle"), (2 * number + 1, "a spade"))
    terminal = StringIO()
    score(table(input={"increment_bytes": 1}, limits={"deadline": "1h"}), console=Console(file=terminal, width=200))
    assert "4 rows to go, about" in terminal.getvalue()
    assert terminal.getvalue().count("in time for the deadline") == 1
    _append(spark, tmp_path, (6, "tea"))
    late = score(table(limits={"deadline": "0.01s"}), console=Console(file=terminal, width=200))
    assert "1 row to go, about" in terminal.getvalue()
    assert (late.status, late.left) == ("expired", {"rows": 1})


def test_failed_rows_of_a_table_are_looked_up_by_their_key(
    spark: Any, table: Callable[..., Settings], tmp_path: Path
) -> None:
    _append(spark, tmp_path, (1, "a red kettle"), (2, "word " * 300))
    settings = {"output": {"columns": ["id"]}, "score": {"overflow": "fail"}}
    assert score(table(**settings)).failed_by_code == {"input_too_long": 1}
    with pytest.raises(OutputError, match="overflow"):
        retry(table(output={"columns": ["id"]}))
    assert retry(table(**settings)).succeeded == 0
    assert _succeeded(spark, tmp_path) == Counter([1])
