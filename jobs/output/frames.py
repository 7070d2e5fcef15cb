"""Rows of an output as Parquet: written aside, and read with the struct of their answers and the types they had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.folder import Folder
from jobs.layout import Flat, flat_columns, put_together, take_apart, with_types
from jobs.output.marks import Mark
from jobs.output.partitions import null_place
from jobs.settings import Settings
from jobs.spark.session import spark_conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Rows of a task reach Python in Arrow batches of this size; a window is put together from several.
_ARROW_ROWS = 1024
WRITE_CONF = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ARROW_ROWS),
    "spark.sql.maxConcurrentOutputFileWriters": "4",  # both outcomes at once, without a sort
    "spark.sql.sources.partitionOverwriteMode": "static",
}


class Frames:
    """Directories of rows below one folder.

    Args:
        folder: The output's.
        settings: Say how answers are laid out.
        partitions: Types of the columns that directories' names tell, where there are any.
    """

    def __init__(self, folder: Folder, settings: Settings, partitions: Callable[[], Mapping[str, str] | None]) -> None:
        self._folder, self._output, self._settings, self._partitions = folder, settings.output, settings, partitions

    def write(self, rows: DataFrame, name: str) -> None:
        """Write rows by Spark's committer, replacing what is there."""
        by = () if self._output.is_table else self._output.partition_by
        with spark_conf(rows.sparkSession, WRITE_CONF):
            rows = take_apart(rows, self._output.result, self._flat) if self._flat else rows
            rows.write.mode("overwrite").partitionBy("outcome", *by).parquet(self._folder / name)
            if not any(entry.startswith("outcome=") for entry in self._folder.entries(name)):
                empty = rows.drop("outcome", *by).limit(0).coalesce(1)  # so that the schema of no rows can be read
                # Where rows are there, and the store has not told of them, one more file takes nothing away.
                empty.write.mode("append").parquet(self._folder / f"{name}/outcome=succeeded{null_place(by)}")

    def read(self, spark: SparkSession, name: str) -> DataFrame:
        """Rows of a directory, with the struct of their answers."""
        return self.with_struct(self.read_as_written(spark, [self._folder / name]))

    def read_marked(self, spark: SparkSession, marks: Sequence[Mark], *, outcome: str = "") -> DataFrame:
        """Rows of what is committed: of the files that the marks name, with the struct of their answers.

        Args:
            spark: The session.
            marks: Of one parent directory; there is one at least.
            outcome: Only `failed` rows, or `succeeded`; empty for both.
        """
        wanted = [self._folder / path for mark in marks for path in mark.paths if f"/outcome={outcome}" in path]
        place = marks[0].place
        parent = self._folder / place.rpartition("/")[0] if "/" in place else self._folder.path
        return self.with_struct(self.read_as_written(spark, wanted, basePath=parent))

    def read_as_written(self, spark: SparkSession, paths: list[str], **options: str) -> DataFrame:
        """Rows as they lie, with the types that directories' names do not tell."""
        reader = spark.read.options(**options)
        frame = reader.parquet(*paths)
        if kinds := self._partitions():
            return reader.schema(with_types(frame.schema, dict(kinds))).parquet(*paths)
        return frame

    def with_struct(self, rows: DataFrame) -> DataFrame:
        """Rows with the struct of their answers, where they lie as columns by themselves."""
        return put_together(rows, self._output.result, self._flat) if self._flat else rows

    @cached_property
    def _flat(self) -> Flat | None:
        return flat_columns(self._settings)
