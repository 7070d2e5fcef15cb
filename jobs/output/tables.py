"""A table of Delta or Iceberg as the place of an output: what is asked of it, and how it is found.

Each increment is one transaction that bears its name. One that is there already is not done again: so whoever does not
know whether it was, as after a kill, does it again.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.errors import SPARK_ERRORS, OutputError, explain
from jobs.folder import Folder
from jobs.output.merging import WAS, merge_statement, one_of_each
from jobs.paths import as_uri_has_it, is_relative
from jobs.settings import Settings
from jobs.spark.session import spark_conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

_JARS = {
    "delta": "io.delta:delta-spark_2.13",
    "iceberg": "org.apache.iceberg:iceberg-spark-runtime-4.0_2.13",
}
_SESSION = {
    "delta": "spark.sql.extensions: io.delta.sql.DeltaSparkSessionExtension and spark.sql.catalog.spark_catalog: "
    "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "iceberg": "spark.sql.extensions: org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
}
_TXN = "spark.databricks.delta.write."  # Delta's own options, for statements that take none
_PROPERTY = "gristmill-increment"


@dataclass(frozen=True)
class Transaction:
    """What is done to a table once.

    Args:
        job: By which it is told from those of other jobs, and of the same job after it was started afresh.
        series: Whose numbers go up; those of retries are apart.
        number: Of the increment.
        since: When it was marked: what was done to the table before is not it.
    """

    job: str
    series: str
    number: int
    since: str

    @property
    def name(self) -> str:
        return f"{self.job}/{self.series}/{self.number}"


class Table(ABC):
    """The table that answers go to.

    Args:
        spark: The session.
        settings: The job.
        sql: How SQL calls it.
    """

    format: str

    def __init__(self, spark: SparkSession, settings: Settings, sql: str) -> None:
        self._spark, self._settings, self.sql = spark, settings, sql
        self.place = settings.output.place

    def exists(self) -> bool:
        """Raises OutputError where the catalog does not tell."""
        with _telling(self.place):
            return bool(self._spark.catalog.tableExists(self.sql))

    def read(self) -> DataFrame:
        return self._spark.table(self.sql)

    def create(self, schema: StructType) -> None:
        """Make it, without a row.

        Raises:
            OutputError: It cannot be made.
        """
        with _telling(self.place):
            self._writer(self._spark.createDataFrame([], schema)).create()

    def check_merges(self, key: Sequence[str]) -> None:
        """Look whether rows can be merged into it; nothing is.

        Raises:
            OutputError: They cannot.
        """
        try:
            none = self.read().limit(0)
            self._spark.sql(f"EXPLAIN {merge_statement(self.sql, none.columns, key)}", rows=none).collect()
        except SPARK_ERRORS as error:
            raise OutputError(
                f"rows cannot be merged into {self.place} ({explain(error)}); spark.conf needs {_SESSION[self.format]}"
            ) from error

    def put(self, rows: DataFrame, transaction: Transaction, *, replaces: bool = False) -> None:
        """Add an increment's rows in one transaction, unless that was done already.

        Args:
            rows: With all columns of the table. Of a merge there may be rows with the outcome `deleted`, whose rows of
                the table go; and WAS.
            transaction: Which.
            replaces: The rows that are there go, and their columns with them.
        """
        is_merge = self._settings.output.mode == "merge"
        if is_merge:
            rows = one_of_each(rows, self._settings.key())
        if replaces:
            self._replace(rows.where("outcome != 'deleted'").drop(WAS), transaction)
        elif is_merge:
            self._merge(rows, merge_statement(self.sql, rows.columns, self._settings.key()), transaction)
        else:
            self._append(rows, transaction)

    def empty(self, schema: StructType) -> None:
        """Leave no row."""
        self._replace(self._spark.createDataFrame([], schema), None)

    @abstractmethod
    def _append(self, rows: DataFrame, transaction: Transaction) -> None: ...

    @abstractmethod
    def _replace(self, rows: DataFrame, transaction: Transaction | None) -> None: ...

    @abstractmethod
    def _merge(self, rows: DataFrame, statement: str, transaction: Transaction) -> None: ...

    def _writer(self, rows: DataFrame) -> Any:
        from pyspark.sql import functions as F

        writer = rows.writeTo(self.sql).using(self.format)
        by = [F.col(_quoted(name)) for name in self._settings.output.partition_by]
        return writer.partitionedBy(*by) if by else writer


class _Delta(Table):
    """Delta knows the transactions of a writer by itself, in its log."""

    format = "delta"

    def exists(self) -> bool:
        path = self._settings.output.path
        return Folder(path).exists("_delta_log") if path else super().exists()

    def _append(self, rows: DataFrame, transaction: Transaction) -> None:
        writer = rows.write.format("delta").mode("append").options(**_txn(transaction))
        writer.saveAsTable(self.sql)

    def _replace(self, rows: DataFrame, transaction: Transaction | None) -> None:
        writer = rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        writer = writer.options(**_txn(transaction)) if transaction else writer
        writer.partitionBy(*self._settings.output.partition_by).saveAsTable(self.sql)

    def _merge(self, rows: DataFrame, statement: str, transaction: Transaction) -> None:
        with spark_conf(self._spark, {f"{_TXN}{name}": str(value) for name, value in _txn(transaction).items()}):
            self._spark.sql(statement, rows=rows).collect()


class _Iceberg(Table):
    """Of Iceberg, what appends rows leaves its name in the snapshot; what merges them takes no name, and its rows tell.

    A merge repeated would add no row but those whose key has a null, and to replace all rows is the same done twice.
    """

    format = "iceberg"

    def _append(self, rows: DataFrame, transaction: Transaction) -> None:
        if not self._has_snapshot(transaction):
            rows.writeTo(self.sql).option(f"snapshot-property.{_PROPERTY}", transaction.name).append()

    def _replace(self, rows: DataFrame, transaction: Transaction | None) -> None:
        self._writer(rows).createOrReplace()

    def _merge(self, rows: DataFrame, statement: str, transaction: Transaction) -> None:
        was_written_to = self._look_back(transaction)[0] > 0
        if not (was_written_to and self._has_rows(transaction)):
            self._spark.sql(statement, rows=rows).collect()

    def _has_snapshot(self, transaction: Transaction) -> bool:
        """It is done: a snapshot says so; where some have expired that it might be, the rows do."""
        from pyspark.sql import functions as F

        snapshots = self._spark.table(f"{self.sql}.snapshots")
        if snapshots.where(F.col("summary")[_PROPERTY] == transaction.name).limit(1).count():
            return True
        _, has_forgotten = self._look_back(transaction)
        return has_forgotten and self._has_rows(transaction)

    def _look_back(self, transaction: Transaction) -> tuple[int, bool]:
        """How often the table was written to since the mark, as far as it tells; and whether it may have been more.

        Rows alone do not tell: those of another job, or of a directory of state that is gone, have the same numbers.
        """
        from pyspark.sql import functions as F

        told = self._spark.table(f"{self.sql}.snapshots").select(
            "snapshot_id", "parent_id", F.unix_millis("committed_at").alias("ms")
        )
        there = {row["snapshot_id"]: row for row in told.collect()}
        now = self._spark.table(f"{self.sql}.refs").where("name = 'main'").collect()
        place, later = now[0]["snapshot_id"] if now else None, 0
        since_ms = 1000 * datetime.fromisoformat(transaction.since).timestamp()
        while place in there and there[place]["ms"] >= since_ms:
            place, later = there[place]["parent_id"], later + 1
        return later, place is not None and place not in there

    def _has_rows(self, transaction: Transaction) -> bool:
        from pyspark.sql import functions as F

        return bool(self.read().where(F.col("increment") == transaction.number).limit(1).count())


def open_table(spark: SparkSession, settings: Settings) -> Table:
    """The table of a job's output, be it there or not.

    Raises:
        OutputError: It is of another format, its catalog does not tell, or Spark knows nothing of its format.
    """
    output = settings.output
    if output.table:
        kind = _find_format(spark, settings)
        _check_known(spark, kind)
        return (_Delta if kind == "delta" else _Iceberg)(spark, settings, output.table)
    _check_known(spark, output.format)
    _check_place(output.path)
    path = as_uri_has_it(output.path) if is_relative(output.path) else output.path  # which neither format takes
    if output.format == "delta":
        return _Delta(spark, settings, f"delta.{_quoted(path)}")
    return _Iceberg(spark, settings, _as_catalog(spark, path))


def _as_catalog(spark: SparkSession, path: str) -> str:
    """A directory of Iceberg's as a table of a catalog, as MERGE and `writeTo` want it: that of its parent."""
    parent, slash, name = path.rstrip("/").rpartition("/")
    parent = parent or ("/" if slash else ".")
    catalog = f"gristmill_{hashlib.sha256(parent.encode()).hexdigest()[:12]}"
    conf = {"": "org.apache.iceberg.spark.SparkCatalog", ".type": "hadoop", ".warehouse": parent}
    for key, value in {**conf, ".cache-enabled": "false"}.items():
        spark.conf.set(f"spark.sql.catalog.{catalog}{key}", value)
    return f"{catalog}.{_quoted(name)}"


def _find_format(spark: SparkSession, settings: Settings) -> str:
    """The format of a table in a catalog: what it is, what the job says, or what its catalog makes."""
    output, table = settings.output, str(settings.output.table)
    with _telling(table):
        is_there = spark.catalog.tableExists(table)
        rows = (
            spark.sql(f"DESCRIBE TABLE EXTENDED {table}").where("col_name = 'Provider'").collect() if is_there else []
        )
    told = str(rows[0]["data_type"]).lower() if rows else ""
    asked = "" if output.format == "parquet" else output.format
    if is_there:
        if told not in _JARS or (asked and asked != told):
            raise OutputError(
                f"output.table {table} is of format {told or 'none that its catalog tells'}; answers go to "
                f"{asked or 'Delta or Iceberg'}, so name another table"
            )
        return told
    if asked:
        return asked
    first = table.partition(".")[0].strip("`")
    catalog = first if spark.conf.get(f"spark.sql.catalog.{first}", None) else spark.catalog.currentCatalog()
    maker = str(spark.conf.get(f"spark.sql.catalog.{catalog}", "")).lower()
    if found := [kind for kind in _JARS if kind in maker]:
        return found[0]
    raise OutputError(
        f"output.table {table} is not there, and catalog {catalog} does not tell its format; set output.format"
    )


def _check_known(spark: SparkSession, kind: str) -> None:
    """Refuse a format that Spark has no classes of.

    Raises:
        OutputError: It has none.
    """
    try:
        spark.read.format(kind).load("/nowhere/gristmill").schema  # noqa: B018 - Spark looks for the format as it is asked
    except SPARK_ERRORS as error:
        if "DATA_SOURCE_NOT_FOUND" in str(error):
            raise OutputError(
                f"Spark knows no format {kind}: its classes are not there; name them in spark.conf, as in "
                f"spark.jars.packages: {_JARS[kind]}:VERSION, and set {_SESSION[kind]}"
            ) from error


def _check_place(path: str) -> None:
    """Refuse a directory that holds something else than a table.

    Raises:
        OutputError: It does.
    """
    folder = Folder(path)
    entries = folder.entries()
    if folder.is_file() or (entries and not {"_delta_log", "metadata"} & set(entries)):
        raise OutputError(
            f"output.path {path} holds {(entries or ['a file'])[0]} and no table; name an empty directory"
        )


@contextmanager
def _telling(place: str) -> Iterator[None]:
    try:
        yield
    except SPARK_ERRORS as error:
        raise OutputError(f"{place} cannot be written to: {explain(error)}") from error


def _txn(transaction: Transaction) -> dict[str, Any]:
    return {"txnAppId": f"gristmill-{transaction.job}-{transaction.series}", "txnVersion": transaction.number}


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
