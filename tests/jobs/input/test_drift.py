"""What is told of columns and types that change from night to night, or that Spark cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.errors import InputError
from jobs.input.drift import tell_drift, tell_partitions
from jobs.input.reading import read_whole
from jobs.input.sources import check_columns, read_input
from jobs.job_file import load_settings

WriteJob = Callable[..., Path]


def _schema(text: str) -> Any:
    from pyspark.sql.types import StructType

    return StructType.fromDDL(text)


def test_partition_values_that_change_or_lose_zeros_are_told(spark: Any) -> None:
    (zeros,) = tell_partitions(_schema("id INT, store INT"), ["file:///in/store=007/a.json"])
    assert "store=007" in zeros
    assert "partitionColumnTypeInference" in zeros
    for kind, value in {"DOUBLE": "1D", "DECIMAL(3,2)": "1.50", "BIGINT": "+7"}.items():
        (changed,) = tell_partitions(_schema(f"size {kind}"), [f"file:///in/size={value}/a.json"])
        assert f"size={value}" in changed
    assert (
        tell_partitions(_schema("size DOUBLE"), [f"file:///in/size={v}/a.json" for v in ("2", "-0.5", "10.25")]) == []
    )
    (new,) = tell_partitions(_schema("id INT"), ["file:///in/store=7/a.json"])
    assert new.endswith("store of /in/store=7/a.json")
    assert tell_partitions(_schema("store STRING, day DATE"), ["file:///in/store=007/day=2026-01-01/a.json"]) == []
    with pytest.raises(InputError, match=r"store=north of /in/store=north/a\.json is no int"):
        tell_partitions(_schema("store INT"), ["file:///in/store=north/a.json"])


@pytest.mark.parametrize(("form", "options"), [("json", {}), ("csv", {"header": True}), ("parquet", {})])
def test_a_partition_column_that_is_new_is_told_and_left_out(
    spark: Any, write_job: WriteJob, tmp_path: Path, form: str, options: dict[str, Any]
) -> None:
    def write(name: str) -> None:
        path = tmp_path / f"in/{name}.{form}"
        path.parent.mkdir(parents=True)
        table = pd.DataFrame({"id": ["1"], "text": ["a"]})
        match form:
            case "json":
                table.to_json(path, orient="records", lines=True)
            case "csv":
                table.to_csv(path, index=False)
            case _:
                table.to_parquet(path)

    write("a")
    source = {"path": str(tmp_path / "in"), "format": form, "options": options}
    settings = load_settings(write_job(input=source))
    schema = read_input(spark, settings).schema
    write("day=3/b")
    frame = read_input(spark, settings, schema)
    (new,) = tell_drift(spark, settings, frame, {str(tmp_path / f"in/day=3/b.{form}")})
    assert new.startswith("new partition columns are left out")
    assert "day of " in new
    uris = [f"file://{tmp_path}/in/{name}.{form}" for name in ("a", "day=3/b")]  # as Spark writes them
    read = read_whole(spark, settings, frame.schema, uris)
    assert set(read.frame.columns) >= {"id", "text"}
    assert "day" not in read.frame.columns
    assert read.counts.rows == 2


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_columns_that_later_files_add_or_lack_are_told(
    spark: Any, write_job: WriteJob, tmp_path: Path, form: str
) -> None:
    def write(name: str, **columns: Any) -> None:
        table = pd.DataFrame({key: [value] for key, value in columns.items()})
        path = tmp_path / f"in/{name}.{form}"
        table.to_json(path, orient="records", lines=True) if form == "json" else table.to_parquet(path)

    (tmp_path / "in").mkdir()
    write("a", id=1, text="a")
    settings = load_settings(write_job(input={"path": str(tmp_path / "in"), "format": form, "key": ["id"]}))
    schema = read_input(spark, settings).schema
    write("b", text="b", brand="acme")
    frame = read_input(spark, settings, schema)
    left = {str(tmp_path / f"in/b.{form}")}
    new, absent = tell_drift(spark, settings, frame, left)
    assert "brand of" in new
    assert "null: id of" in absent
    assert absent.endswith(f"b.{form}")
    write("b", id=2, titel="b")
    if form == "parquet":
        with pytest.raises(InputError, match=r"lacks text.*b\.parquet"):
            tell_drift(spark, settings, frame, left)
    else:
        assert any("null: text of" in line for line in tell_drift(spark, settings, frame, left))


@pytest.mark.long
def test_timestamps_of_nanoseconds_are_in_the_way_only_where_they_are_kept(
    spark: Any, write_job: WriteJob, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    pd.DataFrame({"id": [1], "text": ["a"], "t": pd.to_datetime(["2026-01-01"]).astype("datetime64[ns]")}).to_parquet(
        tmp_path / "in/a.parquet"
    )
    source = {"path": str(tmp_path / "in"), "format": "parquet"}
    with pytest.raises(InputError, match="nanosAsLong: true"):
        read_input(spark, load_settings(write_job(input=source)))
    settings = load_settings(write_job(input=source, output={"columns": ["id"]}))
    frame = read_input(spark, settings)
    assert read_whole(spark, settings, frame.schema, list(frame.inputFiles())).counts.rows == 1


@pytest.mark.parametrize(
    "kind", ["make_interval(1)", "struct(make_interval(1) AS a)", "TIME'10:00:00'", "array(struct())"]
)
def test_types_that_parquet_does_not_hold_are_refused_by_name(spark: Any, write_job: WriteJob, kind: str) -> None:
    source = {"path": None, "query": f"SELECT 'a' AS text, INTERVAL 1 DAY AS interval, {kind} AS odd"}
    with pytest.raises(InputError, match="column 'odd' is of type"):
        read_input(spark, load_settings(write_job(input=source)))
    assert read_input(spark, load_settings(write_job(input=source, output={"columns": ["interval"]}))).columns


def test_names_of_our_own_are_refused(write_job: WriteJob) -> None:
    with pytest.raises(InputError, match="'_gristmill_row'"):
        check_columns(["id", "text", "_gristmill_row"], load_settings(write_job()))


@pytest.mark.long
def test_a_column_called_metadata_is_read_as_any_other(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"text": "a", "_metadata": "mine"}\n')
    settings = load_settings(write_job(input={"path": str(tmp_path / "in")}))
    frame = read_input(spark, settings)
    read = read_whole(spark, settings, frame.schema, list(frame.inputFiles()))
    assert [(row["_metadata"], row["_gristmill_file"][-7:]) for row in read.frame.collect()] == [("mine", "a.jsonl")]
