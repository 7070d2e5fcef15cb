"""Reads a table for `test_tables.py`: `python tests/jobs/output/table_reader.py FORMAT PATH` tells it as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from jobs.settings import SparkSettings
from jobs.spark.session import open_session
from tests.fetch_lakehouse import TARGET
from tests.jobs.output.table_app import SPARK


def read(kind: str, path: str) -> dict[str, Any]:
    jars = ",".join(map(str, sorted((TARGET / "jars").iterdir())))
    spark = open_session(SparkSettings(master="local[2]", conf={**SPARK, "spark.jars": jars}))
    found = spark.read.format(kind).load(path)
    answer = found["prediction"]
    rows = found.select(
        "id",
        "text",
        "outcome",
        "increment",
        answer["embedding"].alias("embedding"),
        answer["error"]["code"].alias("code"),
    )
    if kind == "delta":
        history = spark.sql(f"DESCRIBE HISTORY delta.`{path}`").where("operation IN ('WRITE', 'MERGE')")
        commits = history.count()
    else:
        commits = spark.read.format(kind).load(f"{path}#snapshots").where("parent_id IS NOT NULL").count()
    return {"rows": [row.asDict() for row in rows.collect()], "commits": commits}


if __name__ == "__main__":
    print(json.dumps(read(sys.argv[1], sys.argv[2])))
    sys.stdout.flush()
    os._exit(0)
