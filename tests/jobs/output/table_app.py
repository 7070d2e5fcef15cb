"""A Spark application for `test_tables.py`: jobs whose answers go to a table of Delta or Iceberg.

python tests/jobs/output/table_app.py SCENARIO FORMAT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from jobs.job_file import load_settings
from jobs.run import score
from jobs.settings import Settings
from tests.jobs.input.lakehouse_app import COMPACT, EXPIRE, EXTENSIONS, App

SPARK = {name: value for conf in EXTENSIONS.values() for name, value in conf.items()} | {
    "spark.sql.extensions": ",".join(conf["spark.sql.extensions"] for conf in EXTENSIONS.values())
}
FEED = "ALTER TABLE {table} SET TBLPROPERTIES (delta.enableChangeDataFeed = true)"


class Tables(App):
    """A table, and jobs on it whose answers go to another one."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.answers = {"delta": "answers", "iceberg": "lake.db.answers"}[kind]
        self.output: dict[str, Any] = {"table": self.answers, "format": kind, "state": str(folder / "state")}
        self.columns: list[str] | None
        super().__init__(kind, folder)
        self.columns = ["id"]

    def rows(self, name: str = "") -> list[Any]:
        """Keys with outcomes and increments."""
        found = self.spark.table(name or self.answers).orderBy("id", "outcome", "increment")
        return [[row["id"], row["outcome"], row["increment"]] for row in found.collect()]

    def note(self, name: str) -> None:
        self.told[f"{name}: rows"] = self.rows()

    def commits(self) -> int:
        """How often the table was written to."""
        if self.kind == "delta":
            history = self.spark.sql(f"DESCRIBE HISTORY {self.answers}")
            return int(history.where("operation IN ('WRITE', 'MERGE')").count())
        return int(self.spark.table(f"{self.answers}.snapshots").count())

    def _job(self, *, changes: str = "stop", **source: Any) -> Settings:
        super()._job(**source)
        job = json.loads((self.folder / "job.yaml").read_text())
        job["input"]["changes"] = changes
        job["output"] = {"columns": self.columns, **self.output}
        job["score"] |= {"max_tokens": 64}
        path = self.folder / "table_job.yaml"
        path.write_text(json.dumps(job))
        return load_settings(path)


def merged(app: Tables) -> None:
    """Rows come again by their key, fail, are mended by a retry, and others are told."""
    app.output["mode"] = "merge"
    app.append(1, 2)
    app.append(3, text="word " * 100)
    app.score("first")
    app.note("first")
    app.append(2, 2)
    app.spark.sql(f"INSERT INTO {app.table} VALUES (null, 'a red kettle'), (null, 'a spade')")
    app.score("again, twice, and without a key")
    app.note("again")
    app.columns = ["id"]
    app.sql("UPDATE {table} SET text = 'a spade' WHERE id = 3")
    app.retry("mended by the key")
    app.note("mended")
    app.retry("nothing left")
    app.told["commits"] = app.commits()


def followed(app: Tables) -> None:
    """The input's rows are changed, deleted, moved and added between the runs."""
    app.output["mode"] = "merge"
    source = {"changes": "follow"}
    if app.kind == "delta":
        app.append(0)
        app.score("no feed yet", **source)
        app.output["state"] += "2"
        app.spark.sql(f"DROP TABLE IF EXISTS {app.answers}")
        app.sql(FEED)
        app.sql("DELETE FROM {table} WHERE id = 0")
    app.append(1, 2, 3)
    app.append(4, 5)
    app.score("first", **source)
    app.note("first")
    app.sql("UPDATE {table} SET text = 'a spade' WHERE id = 2")
    app.sql("DELETE FROM {table} WHERE id = 1")
    app.append(6)
    app.score("changed", **source)
    app.note("changed")
    app.sql("UPDATE {table} SET id = 7 WHERE id = 3")  # the key itself
    app.sql("DELETE FROM {table} WHERE id = 6")
    app.append(6)
    app.sql(COMPACT[app.kind])
    app.score("keys", **source)
    app.note("keys")
    app.score("nothing new", **source)
    app.sql("DELETE FROM {table} WHERE id = 4")
    app.score("deleted alone", **source)
    app.note("deleted alone")
    app.append(2, text="twice")
    app.sql("DELETE FROM {table} WHERE id = 2 AND text LIKE 'twice%'")
    app.score("one of two", **source)
    app.note("one of two")
    rows = [(number, f"a lamp {number}") for number in (2, 5, 8, 9)]
    app.spark.createDataFrame(rows, "id int, text string").repartition(4, "id").createOrReplaceTempView("lamps")
    app.sql("INSERT OVERWRITE {table} SELECT * FROM lamps")
    parted = {"increment_bytes": 1} if app.kind == "delta" else {}  # Iceberg parts by the key, which is slow here
    app.score("overwritten", **parted, **source)
    app.note("overwritten")
    app.score("not followed")


def refused(app: Tables) -> None:
    """What is told before anything is written to the table."""
    app.append(1)
    app.output["mode"] = "merge"
    app.spark.sql(f"CREATE TABLE {app.answers} (id int, other string) USING {app.kind}")
    app.score("other columns")
    app.spark.sql(f"INSERT INTO {app.answers} VALUES (1, 'a')")
    app.score("foreign rows")
    app._tell("foreign rows, overwritten", lambda: score(app._job(), overwrite=True))
    app.told["untouched"] = [list(row) for row in app.spark.table(app.answers).collect()]
    app.output = {"table": "nowhere.db.answers", "state": str(app.folder / "state2"), "format": app.kind}
    app.score("no catalog")
    app.spark.sql("CREATE TABLE plain (id int) USING parquet")
    app.output["table"] = "spark_catalog.default.plain"
    app.score("another format")
    spelt = {"delta": "`spark_catalog`.Default.`texts`", "iceberg": "lake.`db`.`texts`"}[app.kind]
    app.output["table"], app.output["mode"] = spelt, "append"
    app.score("itself")
    app._tell("itself, overwritten", lambda: score(app._job(), overwrite=True))
    app.score("itself by a query", table=None, query=f"SELECT t.* FROM {app.table} AS t -- texts")
    place = {"delta": "texts", "iceberg": "db/texts"}[app.kind]
    app.score("itself by its path", table=None, path=str(app.folder / "tables" / place), format=app.kind)
    app.told["input"] = app.spark.table(app.table).count()
    app.told["states"] = [name for name in ("state", "state2") if (app.folder / name).exists()]


def afresh(app: Tables) -> None:
    """--overwrite replaces what the table holds with the first increment, and its columns too."""
    app.append(1, 2)
    app.score("first")
    app.output["layout"] = "flat"
    app.score("another layout")
    job = app._job()
    report = score(job, overwrite=True)
    app.told["overwritten"] = [report.status, report.rows]
    app.note("overwritten")
    app.told["columns"] = app.spark.table(app.answers).columns
    app.append(3)
    app.score("gone on")
    app.note("gone on")
    app.spark.sql(f"DROP TABLE {app.answers}")
    app.score("dropped")
    app.sql("DELETE FROM {table}")
    app.spark.sql(f"CREATE TABLE {app.answers} (id int, outcome string, increment int) USING {app.kind}")
    app.spark.sql(f"INSERT INTO {app.answers} VALUES (9, 'succeeded', 0)")
    report = score(app._job(), overwrite=True)
    app.told["nothing to score"] = [report.status, report.rows, app.rows()]


def shared(app: Tables) -> None:
    """Two jobs add to one table, which forgets its snapshots; their increments have the same numbers."""
    app.append(1, 2)
    app.score("first")
    app.append(3)
    app.score("more")
    if app.kind == "iceberg":
        app.spark.sql(EXPIRE.replace("db.texts", "db.answers")).collect()
    app.output["state"] += "2"
    app.score("another job")
    app.note("shared")


def paths(app: Tables) -> None:
    """A directory as a table, with partitions, flat, by append and by merge."""
    app.append(1, 2)
    app.append(3, text="word " * 100)
    for mode in ("append", "merge"):
        path = app.folder / f"out {mode}.x"
        app.output = {
            "path": str(path), "format": app.kind, "layout": "flat", "partition_by": ["id"], "mode": mode,
        }  # fmt: skip
        app.score(mode)
        app.retry(f"{mode} retried")
        found = app.spark.read.format(app.kind).load(str(path))
        app.told[f"{mode}: rows"] = sorted([r["id"], r["outcome"], r["error_code"]] for r in found.collect())
        app.told[f"{mode}: columns"] = found.columns
        app.told[f"{mode}: beside"] = sorted(p.name for p in app.folder.glob(f"out {mode}.x*"))
    app.output = {"path": str(app.folder / "tables"), "format": app.kind}
    app.score("no table")
    os.chdir(app.folder)
    app.output = {"path": "near/answers", "format": app.kind}
    app.score("near")
    app.append(4)
    app.score("near again")
    os.chdir("/")
    found = app.spark.read.format(app.kind).load(str(app.folder / "near/answers"))
    app.told["near: rows"] = sorted(row["id"] for row in found.collect())


if __name__ == "__main__":
    made = Tables(sys.argv[2], Path(sys.argv[3]))
    try:
        globals()[sys.argv[1]](made)
    except Exception:
        print(made.told, file=sys.stderr)
        raise
    print(json.dumps({"told": made.told}))
    sys.stdout.flush()
    made.spark.stop()
    os._exit(0)
