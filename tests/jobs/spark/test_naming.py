"""What Spark's UI calls its jobs and stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.job_file import load_settings
from jobs.run import score
from jobs.spark.naming import named


def _names(spark: Any) -> set[str]:
    """Of all jobs and stages, as the UI has them."""
    store, jvm = spark._jsc.sc().statusStore(), spark._jvm
    jobs = store.jobsList(None)
    none = spark._sc._gateway.new_array(jvm.double, 0)
    stages = store.stageList(None, False, False, none, jvm.java.util.ArrayList())
    told = [jobs.apply(i).description() for i in range(jobs.size())]
    return {one.get() for one in told if one.isDefined()} | {stages.apply(i).name() for i in range(stages.size())}


def test_jobs_and_stages_say_increment_and_step(spark: Any, write_job: Callable[..., Path]) -> None:
    score(load_settings(write_job()))
    assert {"increment 0: read", "increment 0: score"} <= _names(spark)


def test_names_last_as_long_as_the_body_also_one_in_another(spark: Any) -> None:
    key = "spark.job.description"
    spark.sparkContext.setLocalProperty(key, "mine")
    with named(spark, "outer"):
        with named(spark, "inner"):
            assert spark.sparkContext.getLocalProperty(key) == "inner"
        assert spark.sparkContext.getLocalProperty(key) == "outer"
    assert spark.sparkContext.getLocalProperty(key) == "mine"
    assert spark.sparkContext.getLocalProperty("callSite.short") is None
    spark.sparkContext.setLocalProperty(key, None)


def test_spark_connect_has_no_such_names() -> None:
    with named(object(), "increment 0: read"):  # type: ignore[arg-type]
        pass
