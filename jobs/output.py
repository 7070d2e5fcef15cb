"""The output directory: whose it is, how an increment gets into it, what was committed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs import files
from jobs.errors import OutputError
from jobs.settings import Settings
from udfs.models import open_model

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_HOME = "_gristmill"
_JOB = f"{_HOME}/job.json"
# Rows of a task reach Python in Arrow batches of this size; a window is put together from several.
_ARROW_ROWS = 1024
_WRITE_CONF = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ARROW_ROWS),
    "spark.sql.maxConcurrentOutputFileWriters": "4",  # both outcomes at once, without a sort
    "spark.sql.sources.partitionOverwriteMode": "static",
}


@dataclass(frozen=True)
class Committed:
    """Sums over the rows that an output holds.

    Args:
        rows, succeeded, failed: Rows, all of them and by outcome.
        failed_by_code: Failed rows by error code.
        scored_rows: Rows that went through the model; the others failed before or repeat such a row.
        input_tokens, output_tokens, padded_tokens: Sums of `usage`.
        engines: Rows scored by each engine; their number is the number of model loads.
    """

    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    failed_by_code: dict[str, int] = field(default_factory=dict)
    scored_rows: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    padded_tokens: int = 0
    engines: dict[str, int] = field(default_factory=dict)


class Output:
    """One job's output directory.

    Raises:
        OutputError: It is a file, or its scheme cannot be reached.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.output.path
        self._folder = files.Folder(self.path)
        if self._folder.is_file():
            raise OutputError(f"output.path {self.path} is a file; name a directory")

    def check(self, spark: SparkSession, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            OutputError: It holds other files, another job's results, or this job's finished ones.
        """
        files.check_scheme(spark, self.path)
        entries = self._folder.entries()
        if not entries:
            return
        if not self._folder.exists(_JOB):
            raise OutputError(
                f"output.path {self.path} holds {entries[0]} and no gristmill job; name an empty directory"
            )
        if overwrite:
            return
        differs = _differences(self._folder.read_json(_JOB), fingerprint(self._settings))
        if differs:
            raise OutputError(
                f"output.path {self.path} holds another job's results (it differs in {', '.join(differs)}); "
                "name another directory, or start afresh with --overwrite"
            )
        if self._folder.exists("increment=000000/_SUCCESS"):
            raise OutputError(
                f"output.path {self.path} already holds this job's results; score them again with --overwrite"
            )

    def begin(self) -> None:
        """Make the directory this job's: what is left of a killed or an overwritten job goes away."""
        try:
            for entry in self._folder.entries():
                if entry.startswith("increment="):
                    self._folder.delete(entry)
            self._folder.write_json(_JOB, fingerprint(self._settings))
        except OSError as error:
            raise OutputError(f"cannot write to output.path {self.path}: {error}") from error

    def write(self, scored: DataFrame, number: int = 0) -> None:
        """Write one increment by Spark's committer: readers see all of it or nothing."""
        name = f"increment={number:06d}"
        with spark_conf(scored.sparkSession, _WRITE_CONF):
            scored.write.mode("overwrite").partitionBy("outcome").parquet(self._folder / name)
            if not any(entry.startswith("outcome=") for entry in self._folder.entries(name)):
                empty = scored.drop("outcome").limit(0).coalesce(1)  # so that the schema of no rows can be read
                empty.write.mode("overwrite").parquet(self._folder / f"{name}/outcome=succeeded")

    def committed(self, spark: SparkSession) -> Committed:
        """Read back what the output holds; exact whatever was retried, killed or run twice."""
        return count_outcomes(spark.read.parquet(self.path), self._settings.output.name)

    def write_report(self, run_id: str, report: dict[str, Any]) -> str:
        """Keep a run's report; returns its path."""
        name = f"{_HOME}/runs/{run_id}.json"
        self._folder.write_json(name, report)
        return self._folder / name


def fingerprint(settings: Settings) -> dict[str, Any]:
    """What decides a row's answer: the spec, the text and the model's very files."""
    spec = settings.spec()
    hashes = open_model(spec.model, spec.revision).hashes()
    return {**spec.decides_answers(), "template": settings.score.text, "model_files": hashes, "gristmill": 0}


def count_outcomes(results: DataFrame, name: str) -> Committed:
    """Sum up the rows of an output.

    Args:
        results: What Spark reads from an output directory.
        name: The result column.
    """
    from pyspark.sql import functions as F

    usage, tokens = F.col(f"`{name}`.usage"), ("input_tokens", "output_tokens", "padded_tokens")
    groups = results.groupBy(
        "outcome", F.col(f"`{name}`.error.code").alias("code"), F.col(f"`{name}`.engine").alias("engine")
    ).agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if(usage["input_tokens"] > 0).alias("scored_rows"),
        *(F.sum(usage[t]).alias(t) for t in tokens),
    )
    found = groups.collect()
    outcomes, codes, engines = Counter[str](), Counter[str](), Counter[str]()
    for row in found:
        outcomes[row["outcome"]] += row["rows"]
        if row["code"] is not None:
            codes[row["code"]] += row["rows"]
        if row["engine"] is not None:
            engines[row["engine"]] += row["scored_rows"]
    return Committed(
        rows=outcomes.total(),
        succeeded=outcomes["succeeded"],
        failed=outcomes["failed"],
        failed_by_code=dict(sorted(codes.items())),
        scored_rows=sum(row["scored_rows"] for row in found),
        **{token: sum(row[token] or 0 for row in found) for token in tokens},
        engines=dict(sorted(engines.items())),
    )


@contextlib.contextmanager
def spark_conf(spark: SparkSession, conf: dict[str, str]) -> Iterator[None]:
    """Set session options for a while."""
    before = {key: spark.conf.get(key, None) for key in conf}
    try:
        for key, value in conf.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)


def _differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key)]
