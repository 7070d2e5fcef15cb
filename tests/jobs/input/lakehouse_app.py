"""A Spark application for `test_lakehouse.py`: a table of Delta or Iceberg, and one job on it again and again.

python tests/jobs/input/lakehouse_app.py SCENARIO FORMAT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs import run as scoring
from jobs.deadlines import parse_deadline
from jobs.errors import JobError
from jobs.increments import scoring as increments
from jobs.job_file import load_settings
from jobs.run import retry, score
from jobs.settings import Settings
from jobs.spark.session import open_session
from tests.fetch_lakehouse import TARGET
from tests.models import make_encoder

EXTENSIONS = {
    "delta": {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    },
    "iceberg": {
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
    },
}
TABLES = {"delta": "texts", "iceberg": "lake.db.texts"}
COMPACT = {
    "delta": "OPTIMIZE texts",
    "iceberg": "CALL lake.system.rewrite_data_files(table => 'db.texts', options => map('min-input-files', '2'))",
}
EXPIRE = (
    "CALL lake.system.expire_snapshots(table => 'db.texts', older_than => TIMESTAMP '2100-01-01 00:00:00', "
    "retain_last => 1)"
)
SKIP = {
    "delta": {"skipChangeCommits": True},
    "iceberg": {"streaming-skip-overwrite-snapshots": True, "streaming-skip-delete-snapshots": True},
}


class App:
    """A table, and jobs on it; `told` is what they said, by name."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.table, self.folder = kind, TABLES[kind], folder
        self.out, self.columns = "out", ["id"]
        self.told: dict[str, Any] = {}
        self.is_there = (folder / "model").is_dir()
        self._model = str(folder / "model") if self.is_there else make_encoder(folder / "model")
        jars = ",".join(map(str, sorted((TARGET / "jars").iterdir())))
        warehouse = {
            "spark.sql.warehouse.dir": str(folder / "tables"),
            "spark.sql.catalog.lake.warehouse": str(folder / "tables"),
        }
        self._conf = EXTENSIONS[kind] | warehouse | {"spark.jars": jars}
        self.spark: Any = open_session(self._job().spark)
        if kind == "delta" and self.is_there:  # Spark's own catalog is in memory
            self.spark.sql(f"CREATE TABLE {self.table} USING delta LOCATION '{folder}/tables/texts'")
        else:
            self.spark.sql(f"CREATE TABLE IF NOT EXISTS {self.table} (id int, text string) USING {kind}")

    def sql(self, statement: str) -> None:
        self.spark.sql(statement.format(table=self.table)).collect()

    def append(self, *ids: int, text: str = "a red kettle") -> None:
        rows = [(number, f"{text} {number}") for number in ids]
        self.spark.createDataFrame(rows, "id int, text string").coalesce(1).writeTo(self.table).append()

    def score(self, name: str, **source: Any) -> None:
        self._tell(name, lambda: score(self._job(**source)))

    def retry(self, name: str) -> None:
        self._tell(name, lambda: retry(self._job()))

    def keys(self) -> list[int]:
        """Of rows that succeeded."""
        found = self.spark.read.parquet(str(self.folder / self.out)).where("outcome = 'succeeded'")
        return sorted(row["id"] if "id" in self.columns else int(row["text"].split()[-1]) for row in found.collect())

    def say(self, name: str, deadline: str, **source: Any) -> None:
        """Score, and tell all lines of the terminal; the report counts what is left."""
        job = self._job(**source)
        limits = job.limits.model_copy(update={"deadline": parse_deadline(deadline)})
        terminal = StringIO()
        report = score(job.model_copy(update={"limits": limits}), console=Console(file=terminal, width=200))
        self.told[name] = [terminal.getvalue(), report.left]

    def _tell(self, name: str, run: Callable[[], Any]) -> None:
        try:
            report = run()
        except JobError as error:
            self.told[name] = f"{type(error).__name__}: {error}"
        else:
            self.told[name] = [report.status, report.rows, report.increments]

    def _job(self, **source: Any) -> Settings:
        where = {} if "path" in source else {"table": self.table}
        job = {
            "input": {"key": ["id"], **where, **source},
            "output": {"path": str(self.folder / self.out), "columns": self.columns},
            "score": {"task": "feature-extraction", "model": self._model, "text": "text", "overflow": "fail"},
            "limits": {"max_error_rate": 1.0},
            "spark": {"master": "local[2]", "conf": self._conf},
        }
        path = self.folder / "job.yaml"
        path.write_text(json.dumps(job))  # JSON is YAML
        return load_settings(path)


def followed(app: App) -> None:
    """Rows are appended, moved, changed and deleted between the runs of one output."""
    app.score("empty")
    app.append(1, 2)
    app.append(3)
    app.score("two commits")
    app.score("nothing new")
    app.append(4)
    app.append(5, text="word " * 300)
    app.score("one too long")
    app.retry("too long again")
    app.sql(COMPACT[app.kind])
    app.append(6)
    app.score("compacted")
    app.sql("ALTER TABLE {table} ADD COLUMN note string")
    app.spark.sql(f"INSERT INTO {app.table} VALUES (7, 'a red kettle 7', 'new')")
    app.score("another column")
    app.sql("DELETE FROM {table} WHERE id = 1")
    app.spark.sql(f"INSERT INTO {app.table} VALUES (8, 'a red kettle 8', 'new')")
    app.score("deleted")
    app.score("deleted, skipped", options=SKIP[app.kind])
    app.sql("UPDATE {table} SET text = 'a spade' WHERE id = 2")
    app.spark.sql(f"INSERT INTO {app.table} VALUES (9, 'a red kettle 9', 'new')")
    app.score("changed", options=SKIP[app.kind])


def raced(app: App) -> None:
    """An Iceberg table whose first snapshots expire after the job has looked at them and before it reads them."""
    app.append(*range(1, 40))
    app.append(40)
    app.append(41)
    look = scoring.read_lineage

    def look_and_lose(*args: Any) -> Any:
        found = look(*args)
        app.sql(EXPIRE)
        return found

    scoring.read_lineage = look_and_lose
    app.score("raced", increment_bytes=700)
    scoring.read_lineage = look
    app.score("again, in shares", increment_bytes=700)
    app.append(42)
    app.score("appended")


def expired(app: App) -> None:
    """An Iceberg table that has forgotten its first snapshots before it is scored, and forgets again."""
    app.append(1, 2)
    app.append(3)
    app.append(4)
    app.sql(EXPIRE)
    app.score("all that is there")
    app.append(5)
    app.append(6)
    app.score("two commits", increment_bytes=500)
    app.sql(COMPACT["iceberg"])
    app.append(7)
    app.score("compacted")
    app.sql("DELETE FROM {table} WHERE id = 1")
    app.append(8)
    app.score("deleted")
    app.score("deleted, skipped", options=SKIP["iceberg"])
    app.append(9)
    app.sql(EXPIRE)
    app.append(10)
    app.score("expired, and no gap")
    app.append(11)
    app.append(12)
    app.sql(EXPIRE)
    app.score("expired since")


def dated(app: App) -> None:
    """A table is scored up to a deadline: what is left is told in rows, before and after."""
    for first in range(1, 120, 40):
        app.append(*range(first, first + 40))
    app.say("time enough", "1h", increment_bytes=700)
    app.append(*range(121, 131))
    app.say("no time", "0.01s")
    app.say("one more night", "1h")


def evolved(app: App) -> None:
    """An Iceberg table that has another column than its first snapshot had, by its name and by its path."""
    app.append(1, 2)
    app.append(3)
    app.sql("ALTER TABLE {table} ADD COLUMN note string")
    app.spark.sql(f"INSERT INTO {app.table} VALUES (4, 'a red kettle 4', 'new')")
    app.columns = ["id", "note"]
    app.score("by name", increment_bytes=700)
    app.out = "by_path"
    path = str(app.folder / "tables/db/texts")
    app.score("by path", increment_bytes=700, format="iceberg", path=path)
    app.score("nothing new", format="iceberg", path=path)


def widened(app: App) -> None:
    """The key's type of an Iceberg table becomes a wider one while a snapshot is scored in shares."""
    app.append(*range(1, 41))
    app.out = "with_key"
    app.score("with the key", increment_bytes=300)
    app.out, app.columns = "out", ["text"]
    choose, chosen = increments.next_span, list[Any]()

    def choose_once(*args: Any, **options: Any) -> Any:
        chosen.append(None if chosen else choose(*args, **options))
        return chosen[-1]

    increments.next_span = choose_once
    app.score("some", increment_bytes=300)
    increments.next_span = choose
    app.sql("ALTER TABLE {table} ALTER COLUMN id TYPE bigint")
    app.score("the rest", increment_bytes=300)
    app.out, app.columns = "with_key", ["id"]
    app.score("with another key")
    app.out, app.columns = "out", ["text"]


def begun(app: App) -> None:
    """Four commits, each of which is an increment or more; the test kills this."""
    for first in range(1, 121, 30):
        app.append(*range(first, first + 30))
    app.score("begun", increment_bytes=700)


def gone_on(app: App) -> None:
    """The same job, by another driver."""
    app.score("the rest", increment_bytes=700)
    app.score("nothing new", increment_bytes=700)


if __name__ == "__main__":
    made = App(sys.argv[2], Path(sys.argv[3]))
    globals()[sys.argv[1]](made)
    print(json.dumps({"told": made.told, "keys": made.keys(), "spark": made.spark.version}))
    sys.stdout.flush()
    made.spark.stop()
    os._exit(0)
