"""The job in this process, on the session's Spark: what comes out, and what is refused before anything is written."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.errors import InputError, JobError, OutputError, TooManyFailed, UserError
from jobs.job import check_report
from jobs.job_file import load_settings
from jobs.run import score
from jobs.telling.dry_run import show_plan
from tests.conftest import MINILM, ROOT
from tests.random_writers import save_writer
from udfs.errors import ModelError

WriteJob = Callable[..., Path]


def test_the_catalog_is_tagged(spark: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    settings = load_settings(
        ROOT / "conf/catalog_tagging.yaml",
        [f"output.path={out}", f"input.path={ROOT}/conf/samples/catalog.jsonl", "cost.usd_per_hour=3.6"],
    )
    report = score(settings)
    rows = spark.read.parquet(out).collect()
    written = [json.loads(line) for line in (ROOT / "conf/samples/catalog.jsonl").read_text().splitlines()]
    assert Counter(row["product_id"] for row in rows) == Counter(row["product_id"] for row in written)
    good = [row for row in rows if row["outcome"] == "succeeded"]
    bad = [row for row in rows if row["outcome"] == "failed"]
    assert {row["product_id"] for row in bad} == {
        r["product_id"] for r in written if not r["title"] and not r["description"]
    }
    assert all(
        row["prediction"]["error"]["code"] == "empty_input" and row["prediction"]["label"] is None for row in bad
    )
    assert all(
        row["prediction"]["error"] is None and abs(sum(row["prediction"]["scores"].values()) - 1) < 1e-3 for row in good
    )
    english = {r["product_id"] for r in written if r["language"] == "en"}
    right = [row["prediction"]["label"] == row["department"] for row in good if row["product_id"] in english]
    assert sum(right) > 0.7 * len(right)  # ten labels: chance gives 0.1
    assert (report.rows, report.succeeded, report.failed) == (len(rows), len(good), len(bad))
    assert report.failed_by_code == {"empty_input": len(bad)}
    assert report.input_tokens == sum(row["prediction"]["usage"]["input_tokens"] for row in rows)
    assert 0 < report.scored_rows < report.succeeded  # the sample has duplicates
    assert sum(report.engines.values()) == report.scored_rows
    assert report.usd == pytest.approx(report.wall_s / 1000, rel=0.01)
    (kept,) = (tmp_path / "out/_gristmill/runs").iterdir()
    assert json.loads(kept.read_text()) == report.as_dict()


@pytest.mark.long
def test_a_table_and_a_query_are_inputs_too(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    spark.createDataFrame([(1, "a"), (2, "b")], "id int, text string").createOrReplaceTempView("things")
    for source in ({"table": "things"}, {"query": "SELECT * FROM things WHERE id = 2"}):
        path = write_job(input={"path": None, **source}, output={"path": str(tmp_path / next(iter(source)))})
        assert score(load_settings(path)).succeeded == (2 if "table" in source else 1)


@pytest.mark.parametrize("format_", ["parquet", "csv", "text", "orc"])
@pytest.mark.long
def test_files_of_any_format_are_inputs(spark: Any, write_job: WriteJob, tmp_path: Path, format_: str) -> None:
    frame = spark.createDataFrame([("a kettle 🫖",), ("a spade",)], "value string")
    frame.write.format(format_).option("header", "true").save(str(tmp_path / "table"))
    source = {"path": str(tmp_path / "table"), "format": format_}
    options = {"options": {"header": True}} if format_ == "csv" else {}
    report = score(load_settings(write_job(input={**source, **options}, score={"text": "value"})))
    assert (report.rows, report.succeeded) == (2, 2)


@pytest.mark.long
def test_an_empty_table_makes_an_empty_output(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    spark.createDataFrame([], "id int, text string").write.parquet(str(tmp_path / "none"))
    report = score(load_settings(write_job(input={"path": str(tmp_path / "none"), "format": "parquet"})))
    assert (report.rows, report.status) == (0, "completed")
    made = spark.read.parquet(str(tmp_path / "out"))
    assert made.count() == 0
    assert {"id", "text", "prediction", "outcome"} <= set(made.columns)


def test_a_megabyte_of_text_a_null_and_an_emoji_go_through(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    texts = [("word " * 210_000,), (None,), ("👩‍👩‍👧",), ("   ",), ("\x00\ufeff",), ("plain",)]
    spark.createDataFrame(texts, "text string").write.parquet(str(tmp_path / "odd"))
    report = score(load_settings(write_job(input={"path": str(tmp_path / "odd"), "format": "parquet"})))
    assert (report.rows, report.failed_by_code) == (6, {"empty_input": 2})
    rows = spark.read.parquet(str(tmp_path / "out")).where("prediction.truncated").collect()
    assert [row["text"][:5] for row in rows] == ["word "]


def test_template_errors_and_long_texts_fail_alone(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    rows = [("one", 2), ("two", 0), ("three " * 300, 1)]
    spark.createDataFrame(rows, "text string, n int").write.parquet(str(tmp_path / "t"))
    path = write_job(
        input={"path": str(tmp_path / "t"), "format": "parquet"},
        score={"text": "{{ text }} {{ 6 // n }}", "overflow": "fail"},
    )
    report = score(load_settings(path))
    assert report.failed_by_code == {"bad_template": 1, "input_too_long": 1}
    assert report.succeeded == 1


@pytest.mark.long
def test_columns_with_odd_names_are_kept(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    spark.createDataFrame([("a b", "x")], "`my text.` string, `größe` string").write.parquet(str(tmp_path / "t"))
    path = write_job(
        input={"path": str(tmp_path / "t"), "format": "parquet"}, score={"text": "my text."}, output={"name": "p.1"}
    )
    assert score(load_settings(path)).succeeded == 1
    assert {"my text.", "größe", "p.1"} <= set(spark.read.parquet(str(tmp_path / "out")).columns)


def test_too_many_failed_rows_are_told_after_they_are_written(spark: Any, write_job: WriteJob) -> None:
    settings = load_settings(write_job(limits={"max_error_rate": 0.1}))
    report = score(settings)
    assert (report.status, report.rows, report.failed) == ("failed", 3, 1)
    with pytest.raises(TooManyFailed, match="1 of 3 rows failed"):
        check_report(report, settings)
    assert TooManyFailed.exit_code == 3


@pytest.mark.parametrize(
    ("sections", "error", "told"),
    [
        ({"input": {"path": "no/such.json"}}, InputError, "no/such.json"),
        ({"input": {"format": "nosuch"}}, InputError, "nosuch"),
        ({"input": {"path": None, "table": "no_such_table"}}, InputError, "no_such_table"),
        ({"input": {"path": None, "query": "SELEC 1"}}, InputError, "SELEC"),
        ({"input": {"key": ["sku"]}}, InputError, "input.key names sku, but the input's columns are: id, text"),
        ({"score": {"text": "body"}}, InputError, "score.text names body"),
        ({"score": {"text": "{{ title }} {{ text }}"}}, InputError, "score.text names title"),
        ({"output": {"columns": ["id", "brand"]}}, InputError, "output.columns names brand"),
        ({"output": {"name": "TEXT"}}, InputError, "set output.name"),
        ({"input": {"path": None, "query": "SELECT 1 AS id, 'a' AS text, 'b' AS TEXT"}}, InputError, "several columns"),
        ({"score": {"model": "no/such-model-here"}}, ModelError, "no/such-model-here"),
        ({"score": {"model": "./nowhere"}}, ModelError, "not a directory"),
        ({"score": {"model": "package:nothing/model"}}, ModelError, "pip install nothing"),
        ({"score": {"task": "text-classification"}}, ModelError, "no classification head"),
        ({"output": {"path": "{in}"}}, OutputError, "is a file"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    spark: Any, write_job: WriteJob, tmp_path: Path, sections: dict[str, Any], error: type[Exception], told: str
) -> None:
    if sections.get("output", {}).get("path") == "{in}":
        sections = {"output": {"path": str(tmp_path / "in.jsonl")}}
    settings = load_settings(write_job(**sections))
    with pytest.raises(error) as caught:
        score(settings)
    assert told in str(caught.value)
    assert "\n\tat " not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_output_of_another_job_is_refused_with_what_differs(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    score(load_settings(write_job()))
    with pytest.raises(OutputError, match=r"differs in max_tokens.*--overwrite"):
        score(load_settings(write_job(score={"max_tokens": 64})))
    assert score(load_settings(write_job(batching={"max_batch_tokens": 512}))).rows == 0  # nothing is new
    assert score(load_settings(write_job(score={"max_tokens": 64})), overwrite=True).rows == 3
    assert spark.read.parquet(str(tmp_path / "out")).count() == 3


@pytest.mark.long
def test_a_dry_run_tells_of_an_output_that_a_run_would_refuse(
    spark: Any, write_job: WriteJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*, overwrite: bool = False, **sections: dict[str, Any]) -> str:
        show_plan(load_settings(write_job(**sections)), Console(file=sys.stderr, width=1000), overwrite=overwrite)
        shown = capsys.readouterr().err
        assert "1 rows in" in shown
        return shown

    query = {"input": {"path": None, "query": "SELECT 1 AS id, 'a' AS text"}}
    assert "warning" not in told(**query)
    score(load_settings(write_job(**query)))
    assert "already holds this job's results" in told(**query)
    assert "differs in max_tokens" in told(**query, score={"max_tokens": 64})
    assert "warning" not in told(**query, score={"max_tokens": 64}, overwrite=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/thesis.doc").write_text("all of it")
    assert "holds thesis.doc and no gristmill job" in told(**query, output={"path": str(tmp_path / "else")})


def test_a_directory_of_something_else_is_never_overwritten(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"thesis\.doc"):
            score(load_settings(write_job()), overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.doc").read_text() == "all of it"


@pytest.mark.long
def test_what_a_killed_run_left_is_replaced(spark: Any, write_job: WriteJob, tmp_path: Path) -> None:
    score(load_settings(write_job()))
    (tmp_path / "out/_gristmill/marks/increment=000000.json").unlink()
    for name in ("0", ".0.crc"):
        (tmp_path / "out/_gristmill/checkpoint/commits" / name).unlink()
    assert score(load_settings(write_job())).rows == 3
    assert spark.read.parquet(str(tmp_path / "out")).count() == 3


def test_input_that_breaks_while_it_is_read_fails_the_job_and_says_so(
    spark: Any, write_job: WriteJob, tmp_path: Path
) -> None:
    spark.createDataFrame([("a",)] * 50, "text string").coalesce(1).write.parquet(str(tmp_path / "t"))
    (part,) = (tmp_path / "t").glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:60])
    with pytest.raises((UserError, JobError)) as caught:
        score(load_settings(write_job(input={"path": str(tmp_path / "t"), "format": "parquet"})))
    assert part.name in str(caught.value)
    assert not list((tmp_path / "out").glob("increment=*/outcome=*"))


@pytest.mark.long
def test_the_same_udf_in_sql_and_in_a_dataframe(spark: Any) -> None:
    from udfs import embed, zero_shot

    spark.createDataFrame(
        [(1, "a steel saucepan and a frying pan"), (2, None)], "id int, text string"
    ).createOrReplaceTempView("shelf")
    spark.udf.register("embed_text", embed(MINILM, precision="float32"))
    by_sql = spark.sql("SELECT id, embed_text(text) AS p FROM shelf ORDER BY id").collect()
    assert len(by_sql[0]["p"]["embedding"]) == 384
    assert by_sql[1]["p"]["error"]["code"] == "empty_input"
    tags = spark.table("shelf").withColumn("p", zero_shot(MINILM, ["kitchen", "garden"])("text"))
    assert [row["label"] for row in tags.orderBy("id").select("p.label").collect()] == ["kitchen", None]


@pytest.mark.long
def test_a_pandas_udf_gives_the_same_answers_as_an_arrow_udf(spark: Any) -> None:
    from pyspark.sql import functions as F

    from udfs.factory import make_udf
    from udfs.tasks.registry import make_spec

    spec = make_spec(
        task="zero-shot-classification",
        model=MINILM,
        labels=("tea", "soil"),
        template="{{ a }} {{ b }}",
        precision="float32",
    )
    frame = spark.createDataFrame([("kettle", "x"), (None, None), ("spade", None)], "a string, b string")
    answers = [
        frame.select(make_udf(spec, arrow=arrow)(F.struct("a", "b")).alias("p")).select(
            "p.label", "p.scores", "p.error"
        )
        for arrow in (True, False)
    ]
    first, second = (answer.collect() for answer in answers)
    for one, other in zip(first, second, strict=True):
        assert (one["label"], one["error"]) == (other["label"], other["error"])
        assert one["scores"] == (other["scores"] and pytest.approx(other["scores"], abs=1e-5))
    assert first[1]["error"]["code"] == "empty_input"


def test_what_a_model_asks_for_in_vain_is_told_and_kept(
    spark: Any, write_job: WriteJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_writer(tmp_path / "model")
    own = tmp_path / "model/generation_config.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "no_repeat_ngram_size": 2}))
    asked = {"task": "text-generation", "model": model, "text": None, "prompt": "Say {{ text }}", "max_new_tokens": 4}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"const": 1}, "uniqueItems": True}}}
    settings = load_settings(write_job(score={**asked, "schema": schema}))
    warnings = score(settings).warnings
    assert ["no_repeat_ngram_size=2" in warnings[0], "uniqueItems" in warnings[1]] == [True, True]
    told = capsys.readouterr().err
    assert all(told.count(warning) == 1 for warning in warnings)
    show_plan(settings, Console(file=sys.stderr))
    told = capsys.readouterr().err
    assert all(warning in told for warning in warnings)
    assert "an answer ends with" in told
    assert "answer:struct<a:array<bigint>>" in told
