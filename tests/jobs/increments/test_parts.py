"""What workers write is what Spark would have written; and Spark writes where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError
from jobs.folder import Folder
from jobs.increments import parts
from jobs.job_file import load_settings
from jobs.output.directory import Output
from jobs.output.parts import write_parts
from jobs.run import retry, score
from jobs.spark.session import spark_conf
from tests.conftest import MINILM
from tests.models import make_encoder
from udfs.results import USAGE
from udfs.worker.parts import PARTS

WriteJob = Callable[..., Path]
COLUMNS = """
    id, 'kettle ' || id AS text, cast(id AS tinyint) AS tiny, cast(id AS smallint) AS small, id > 1 AS flag,
    cast(id AS float) / 3 AS single, id / 7 AS double, cast(id AS decimal(9, 2)) AS d9,
    cast(id AS decimal(38, 5)) AS d38, date_add(date'1500-01-01', cast(id AS int)) AS day,
    timestamp'1960-02-03 04:05:06.789012' + id * interval 1 day AS at,
    x'c3280041' AS bytes, cast(x'c328' AS string) AS torn, array(id, null) AS list, map('k', id, 'é', null) AS attrs,
    named_struct('a', id, 'b', array(named_struct('c', 'x'))) AS nested, if(id = 1, null, 'one' || chr(0)) AS odd,
    id AS `a.b`, id AS `c.`, id AS `[d]`, id AS `é ü`, id AS `e``f`, id AS c0, id AS C_1
"""


def rows_of(spark: Any, settings: Any) -> tuple[str, list[Any]]:
    """The output's schema and rows, the results without what differs from run to run."""
    frame = spark.read.option("basePath", settings.output.path).parquet(f"{settings.output.path}/increment=*")
    kept = frame.withColumn("prediction", frame["prediction"].dropFields("engine"))
    return frame.schema.simpleString(), sorted(map(str, kept.orderBy("id").collect()))


def test_all_types_come_out_as_spark_writes_them(
    spark: Any, write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark.sql(f"SELECT {COLUMNS} FROM range(4)").write.parquet(str(tmp_path / "in"))
    model = make_encoder(tmp_path / "model")
    told = []
    for name in ("workers", "spark"):
        if name == "spark":
            monkeypatch.setattr("jobs.increments.scoring.make_parts", lambda *_, **__: None)
        job = write_job(
            input={"path": str(tmp_path / "in"), "format": "parquet"},
            output={"path": str(tmp_path / name)},
            score={"model": model},
        )
        settings = load_settings(job)
        assert score(settings).succeeded == 4
        told.append(rows_of(spark, settings))
    assert told[0] == told[1]
    by_workers, by_spark = (
        pq.read_table(tmp_path / name / "increment=000000", partitioning=None).schema for name in ("workers", "spark")
    )
    assert by_workers.remove_metadata() == by_spark.remove_metadata()


def test_texts_are_the_same_where_spark_has_no_arrow_udfs(
    spark: Any, write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dates = "date'2026-01-02' AS day, timestamp'2026-01-02 03:04:05' AS at"
    spark.sql(f"SELECT id, {dates}, cast(x'c328' AS string) AS torn FROM range(2)").write.parquet(str(tmp_path / "in"))
    told = []
    for name, arrow in (("new", True), ("old", False)):
        monkeypatch.setattr("udfs.factory.HAS_ARROW_UDF", arrow)
        job = write_job(
            input={"path": str(tmp_path / "in"), "format": "parquet"},
            output={"path": str(tmp_path / name)},
            score={"model": MINILM, "text": "{{ id }} {{ day }} {{ at }} {{ torn }}"},
        )
        assert score(load_settings(job)).succeeded == 2
        told.append(rows_of(spark, load_settings(job)))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("kind", "conf", "by_workers"),
    [
        ("string", {}, True),
        ("timestamp", {}, True),
        ("timestamp_ntz", {}, True),
        ("timestamp", {"spark.sql.parquet.outputTimestampType": "TIMESTAMP_MILLIS"}, False),
        ("struct<a: timestamp, b: timestamp_ntz>", {"spark.sql.parquet.outputTimestampType": "INT96"}, False),
        ("variant", {}, False),
        ("array<interval day to second>", {}, False),
        ("map<string, interval month>", {}, False),
        ("string", {"spark.sql.parquet.compression.codec": "zstd"}, True),
        ("string", {"spark.sql.parquet.compression.codec": "lz4"}, False),
        ("string", {"spark.sql.parquet.writeLegacyFormat": "true"}, False),
    ],
)
def test_spark_writes_where_the_workers_would_write_otherwise(
    spark: Any, write_job: WriteJob, kind: str, conf: dict[str, str], by_workers: bool
) -> None:
    from jobs.increments.plan import Plan
    from jobs.input.reading import Counts, Readable

    frame = spark.createDataFrame([], f"text string, other {kind}")
    settings = load_settings(write_job())
    with spark_conf(spark, conf):
        made = parts.make_parts(Readable(frame, Counts(1)), settings, Plan(1, 1))
    assert (made is not None) == by_workers


def test_files_of_attempts_that_do_not_count_are_left_out(spark: Any, tmp_path: Path) -> None:
    from pyspark.sql.pandas.types import from_arrow_type

    folder = Folder(str(tmp_path))

    def by_workers(aside: str) -> Any:
        for name in ("a.parquet.draft", "b.parquet.draft"):
            Path(aside, name).write_bytes(b"PAR1")
        told = ["a.parquet.draft", 4, "failed", "expired", None, "tokenizers", 3, 0, *(0 for _ in USAGE)]
        return spark.createDataFrame([told], from_arrow_type(pa.struct(PARTS)))

    counts = write_parts(folder, "draft", by_workers)
    assert (counts.rows, counts.failed_by_code) == (3, {"expired": 3})
    assert [file.name for file in folder.walk()] == ["draft/outcome=failed/a.parquet"]


def test_files_that_the_driver_does_not_see_are_told(spark: Any, tmp_path: Path) -> None:
    told = "'a.parquet.draft' AS file, 4L AS size, 'failed' AS outcome"
    with pytest.raises(JobError, match="has to be one directory for all machines"):
        write_parts(Folder(str(tmp_path)), "draft", lambda _: spark.sql(f"SELECT {told}"))


def test_rows_that_failed_are_retried_whoever_wrote_them(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    settings = load_settings(write_job(score={"model": make_encoder(tmp_path / "model")}))
    assert (score(settings).failed, retry(settings).failed) == (1, 1)
    assert len(Output(settings).retries()) == 1
