"""Answers as columns of their own, and columns as directories: what readers find, and what else goes on as ever."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.errors import InputError, OutputError, SettingsError
from jobs.job_file import load_settings
from jobs.layout import added_columns, check_layout
from jobs.output.partitions import tell_guessed
from jobs.run import retry, score
from jobs.settings import Settings
from jobs.spark.session import spark_conf
from jobs.telling.show import answer_table
from jobs.telling.totals import read_totals
from tests.models import make_encoder
from udfs.results import USAGE

WriteJob = Callable[..., Path]
OWN = ["error_code", "error_message", *USAGE, "truncated", "engine"]
ODD = [
    (1, "a/b", dt.date(2026, 1, 2), 7, True, "x"),
    (2, "a b%2F=c", None, None, None, "007"),
    (3, None, dt.date(1500, 1, 1), -1, False, "1e5"),
    (4, "é[*]{}}'\"", dt.date(2026, 1, 2), 7, True, None),
    (5, "__x", dt.date(2026, 1, 3), 0, True, "2026-01-01"),
]


@pytest.fixture
def make_settings(write_job: WriteJob, tmp_path: Path) -> Callable[..., Settings]:
    model = make_encoder(tmp_path / "model")

    def make(**sections: dict[str, Any]) -> Settings:
        return load_settings(write_job(**{**sections, "score": {"model": model, **sections.get("score", {})}}))

    return make


@pytest.mark.long
@pytest.mark.parametrize("writer", ["workers", "spark"])
def test_flat_answers_are_columns_that_any_reader_finds_and_all_goes_on_as_with_a_struct(
    spark: Any, make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    if writer == "spark":
        monkeypatch.setattr("jobs.increments.scoring.make_parts", lambda *_, **__: None)
    _write(tmp_path / "in/a.parquet", id=[1, 2, 3, 4], text=["a red kettle", "long " * 60, None, "a red kettle"])
    source = {"path": str(tmp_path / "in"), "format": "parquet", "key": ["id"]}
    flat, question = {"layout": "flat", "columns": ["id"]}, {"max_tokens": 16, "overflow": "fail"}
    settings = make_settings(input=source, output=flat, score=question)
    assert score(settings).failed_by_code == {"empty_input": 1, "input_too_long": 1}
    assert spark.read.parquet(settings.output.path).columns == ["id", "embedding", *OWN, "increment", "outcome"]
    table = pd.read_parquet(settings.output.path).set_index("id").sort_index()
    assert list(table["error_code"].fillna("")) == ["", "input_too_long", "empty_input", ""]
    assert sorted(table["input_tokens"][[1, 4]]) == [0, 5]  # the second is not scored again
    assert len(table["embedding"][1]) == len(table["embedding"][4]) > 1
    assert table["embedding"][3] is None
    _write(tmp_path / "in/a.parquet", id=[2, 3], text=["short", None])
    mended = retry(settings)
    assert (mended.succeeded, mended.failed_by_code) == (1, {"empty_input": 1})
    assert retry(settings).rows == 0
    totals = read_totals(settings.output.path)
    assert (totals.rows, totals.succeeded, totals.failed_by_code) == (4, 3, {"empty_input": 1})
    good = spark.read.parquet(settings.output.path).where("outcome = 'succeeded' AND error_code IS NULL")
    assert sorted(row["id"] for row in good.collect()) == [1, 2, 4]
    terminal = StringIO()
    Console(file=terminal, width=200).print(answer_table(settings, 9))
    assert "embedding" in terminal.getvalue()
    with pytest.raises(OutputError, match=r"differs in output\.prefix"):
        score(make_settings(input=source, output={**flat, "prefix": "a_"}, score=question))


def test_a_column_that_an_answer_s_would_hide_is_refused_before_spark_starts_where_it_is_named(
    make_settings: Callable[..., Settings],
) -> None:
    flat = {"layout": "flat", "columns": ["id", "engine"]}
    with pytest.raises(SettingsError, match=r"adds a column 'engine', but .* set output\.prefix"):
        check_layout(make_settings(output=flat))
    settings = make_settings(output={**flat, "prefix": "answer_"})
    check_layout(settings)
    assert added_columns(settings)[:2] == ["answer_embedding", "answer_error_code"]
    with pytest.raises(SettingsError, match=r"partition_by names lang, which output\.columns does not keep"):
        check_layout(make_settings(output={"columns": ["id"], "partition_by": ["lang"]}))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"prefix": "a_"}, "prefix is for layout flat"),
        ({"partition_by": ["a", "A"]}, "names a twice"),
        ({"partition_by": ["_a"]}, "readers skip directories"),
        ({"partition_by": [".a"]}, "readers skip directories"),
    ],
)
def test_layouts_that_are_none_are_refused_with_the_settings(
    write_job: WriteJob, output: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(write_job(output=output))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"layout": "flat"}, r"adds a column 'engine', but the input has one too; set output\.prefix"),
        ({"partition_by": ["nowhere"]}, r"output\.partition_by names nowhere"),
        ({"partition_by": ["tags"]}, r"partition_by names tags, which is of type array<string>"),
        ({"partition_by": ["at"]}, r"partition_by names at, which is of type timestamp"),
        ({"partition_by": ["prediction"]}, r"output\.partition_by names prediction"),
    ],
)
def test_what_only_the_table_tells_is_refused_before_anything_is_written(
    spark: Any, make_settings: Callable[..., Settings], tmp_path: Path, output: dict[str, Any], told: str
) -> None:
    at = pa.array([dt.datetime(2026, 1, 2)], pa.timestamp("us", "UTC"))
    _write(tmp_path / "in/a.parquet", id=[1], text=["a"], Engine=["x"], tags=[["y"]], at=at)
    settings = make_settings(input={"path": str(tmp_path / "in"), "format": "parquet"}, output=output)
    with pytest.raises(InputError, match=told):
        score(settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("layout", ["struct", "flat"])
def test_directories_keep_odd_values_nulls_and_dates_and_what_is_retried_keeps_its_own(
    spark: Any, make_settings: Callable[..., Settings], tmp_path: Path, layout: str
) -> None:
    by = ["lang", "day", "n", "ok", "code"]
    columns = dict(zip(["id", *by], map(list, zip(*ODD, strict=True)), strict=True))
    texts = ["long " * 60 if number == 4 else "a red kettle" for number in columns["id"]]
    _write(tmp_path / "in/a.parquet", **columns, text=texts)
    settings = make_settings(
        input={"path": str(tmp_path / "in"), "format": "parquet", "key": ["id"]},
        output={"layout": layout, "columns": ["id", *by], "partition_by": by},
        score={"max_tokens": 16, "overflow": "fail"},
    )
    report = score(settings)
    assert (report.rows, report.failed, report.warnings) == (5, 1, [])
    _write(tmp_path / "in/a.parquet", **columns, text=["short"] * 5)
    assert retry(settings).succeeded == 1
    with spark_conf(spark, {"spark.sql.sources.partitionColumnTypeInference.enabled": "false"}):
        found = spark.read.parquet(settings.output.path).where("outcome = 'succeeded'")
        told = sorted((tuple(row[name] for name in ("id", *by)) for row in found.collect()), key=lambda row: row[0])
    assert told == [(row[0], *map(_spelt, row[1:])) for row in ODD]
    there = ds.dataset(settings.output.path, partitioning=ds.partitioning(flavor="hive")).to_table(columns=["id"])
    assert sorted(there["id"].to_pylist()) == [1, 2, 3, 4, 4, 5]


def _spelt(value: Any) -> str | None:
    """As a directory's name."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.long
def test_an_increment_without_rows_lies_as_deep_as_the_others_so_that_all_can_be_read(
    spark: Any, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    for number, rows in enumerate(['{"id": 1, "text": "a", "a=b": "x"}\n', ""]):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.jsonl").write_text(rows)
    output = {"columns": ["id", "a=b"], "partition_by": ["a=b"]}
    settings = make_settings(input={"path": str(tmp_path / "in"), "increment_bytes": 1}, output=output)
    assert [score(settings).rows, score(settings).rows] == [1, 0]
    assert len(list((tmp_path / "out").glob("increment=*"))) == 2
    assert [row["a=b"] for row in spark.read.parquet(settings.output.path).collect()] == ["x"]


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        (["007"], True),
        (["1.5", "-2e3"], True),
        (["2026-01-02"], True),
        (["007", "a"], False),
        (["a1"], False),
        (["__HIVE_DEFAULT_PARTITION__"], False),
        (["a%2F1"], False),
    ],
)
def test_strings_that_readers_take_for_numbers_are_told(values: list[str], is_told: bool) -> None:
    paths = [f"outcome=succeeded/a%2Fb={value}/part-0.parquet" for value in values]
    assert bool(tell_guessed(paths, {"a/b": "string", "n": "int"})) == is_told
    assert tell_guessed(paths, {"a/b": "int"}) == []


def _write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
