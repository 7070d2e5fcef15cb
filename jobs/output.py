"""The output directory: whose it is, how an increment gets into it, what was committed."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs import files
from jobs.checkpoint import Checkpoint
from jobs.errors import JobError, OutputError
from jobs.lock import Claim, hold_lock
from jobs.settings import Settings
from udfs.models import open_model
from udfs.results import USAGE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

RETRIES = 1_000_000  # increments of retries count from here on, so that they are in nobody's way
_MAJOR = 0  # gristmill's major version: another one may give other answers
_HOME = "_gristmill"
_JOB = f"{_HOME}/job.json"
_LOCK = f"{_HOME}/lock"
_WRITING = f"{_HOME}/writing"
_MARK = "_increment.json"
CHECKPOINT = f"{_HOME}/checkpoint"
RUNS = f"{_HOME}/runs"
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
        input_tokens, output_tokens, padded_tokens, cached_tokens: Sums of `usage`.
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
    cached_tokens: int = 0
    engines: dict[str, int] = field(default_factory=dict)


def add_up(parts: Iterable[Committed]) -> Committed:
    """The sums of sums."""
    total: dict[str, Any] = {
        name: Counter[str]() if isinstance(zero, dict) else zero for name, zero in vars(Committed()).items()
    }
    for part in parts:
        for name, value in vars(part).items():
            if isinstance(value, dict):
                total[name].update(value)
            else:
                total[name] += value
    plain: dict[str, Any] = {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in total.items()}
    return Committed(**plain)


@dataclass(frozen=True)
class Increment:
    """What is known of a committed increment; it is kept in the increment's own directory, as its commit mark.

    Args:
        number: Of Spark's batch; those of retries count from RETRIES on.
        run_id: Who committed it.
        committed_at: When.
        seconds: What it took, from its first look at the input on.
        counts: Sums over its rows. Those of a retry include the rows that failed again, which are in no output.
        input_files, input_bytes: What it was made of; null where the source does not tell.
        input_offset: Where its files end in the source's log; null where there is none.
        ignored_files: Files of it that could not be read.
        gone_files: Files of it that were there as it was planned, and not as it was scored.
        mended: Of a retry: rows that succeeded now, by the code that they had failed with.
    """

    number: int
    run_id: str
    committed_at: str
    seconds: float
    counts: Committed
    input_files: int | None = None
    input_bytes: int | None = None
    input_offset: int | None = None
    ignored_files: tuple[str, ...] = ()
    gone_files: tuple[str, ...] = ()
    mended: dict[str, int] = field(default_factory=dict)

    @property
    def is_retry(self) -> bool:
        return self.number >= RETRIES

    @property
    def began_ms(self) -> float:
        """When it was first looked at, in milliseconds since 1970."""
        return 1000 * (datetime.fromisoformat(self.committed_at).timestamp() - self.seconds)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Increment:
        files = {name: tuple(value.get(name, ())) for name in ("ignored_files", "gone_files")}
        return cls(**{**value, "counts": Committed(**value["counts"]), **files})


class Output:
    """One job's output directory.

        increment=000000/   what readers see: committed increments, each with its mark in `_increment.json`
        _gristmill/
            job.json        whose output it is: fingerprint, layout, the input's schema
            lock            held by the driver that works here
            checkpoint/     Structured Streaming's own
            writing/        increments on their way, by run
            retries/        the rows of each retry, those that failed again among them
            runs/           a report of each run that ended

    Args:
        settings: The job.
        claim: That the output is this driver's, where something is to be committed; `lock` makes one.

    Raises:
        OutputError: It is a file, or its scheme cannot be reached.
    """

    def __init__(self, settings: Settings, claim: Claim | None = None) -> None:
        self._settings, self._claim = settings, claim or Claim()
        self.path = settings.output.path
        self.folder = files.Folder(self.path)
        if self.folder.is_file():
            raise OutputError(f"output.path {self.path} is a file; name a directory")

    @contextlib.contextmanager
    def lock(self, on_lost: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Be the only driver here while the body runs. An empty directory that this makes goes away again.

        Args:
            on_lost: Is called, again and again, once another driver has taken over.

        Raises:
            BusyError: Another driver works here.
            OutputError: The directory holds something else, or cannot be written to.
        """
        self._check_ours()
        with contextlib.ExitStack() as stack:
            try:
                self._claim = stack.enter_context(hold_lock(self.folder, _LOCK, on_lost))
            except OSError as error:
                raise OutputError(f"cannot write to output.path {self.path}: {error}") from error
            stack.callback(self._tidy)
            yield self._claim

    def check(self, spark: SparkSession, *, overwrite: bool) -> None:
        """Refuse a directory that holds something else, before anything is written.

        Raises:
            OutputError: It holds other files or another job's results, or an increment is gone.
        """
        files.check_scheme(spark, self.path)
        if overwrite or not self.is_begun():
            return
        held = self.folder.read_json(_JOB)
        differs = _differences(held.get("job", {}), describe(self._settings))
        if differs:
            raise OutputError(
                f"output.path {self.path} holds another job's results (it differs in {', '.join(differs)}); "
                "name another directory, or start afresh with --overwrite"
            )
        self._check_whole()

    def is_begun(self) -> bool:
        """There is a job's output here, and it is not one that is about to be thrown away."""
        return self.folder.exists(_JOB) and not self.folder.read_json(_JOB).get("thrown_away")

    def begin(self, schema: StructType | None = None, *, overwrite: bool = False) -> None:
        """Make the directory this job's.

        Args:
            schema: The input's; later runs read files by it.
            overwrite: Throw away what is there.

        Raises:
            OutputError: It cannot be written to, or is another driver's by now.
        """
        self._claim.check()
        try:
            if overwrite or not self.is_begun():
                self._throw_away()
                about = {"job": describe(self._settings), "schema": schema.jsonValue() if schema else None}
                self.folder.write_json(_JOB, about)
            self.folder.delete(_WRITING)  # of killed runs
        except OSError as error:
            raise OutputError(f"cannot write to output.path {self.path}: {error}") from error

    def schema(self) -> StructType | None:
        """The input's schema as the first run found it."""
        from pyspark.sql.types import StructType

        kept = self.folder.read_json(_JOB).get("schema") if self.is_begun() else None
        return StructType.fromJson(kept) if kept else None

    def is_committed(self, number: int) -> bool:
        return self.folder.exists(f"{name_of(number)}/{_MARK}")

    def increments(self) -> list[Increment]:
        """All that is committed, in order."""
        return read_increments(self.folder)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder, CHECKPOINT)

    def write(
        self, scored: DataFrame, number: int = 0, *, run_id: str = "run", rows: int | None = None, **about: Any
    ) -> Increment:
        """Write one increment, count what was written, and commit it; readers see all of it or nothing.

        Where a directory can be renamed, the increment is written aside and put in its place in one step. An object
        store has no such step: there Spark's committer writes it in its place, and the mark comes last.

        Args:
            scored: Its rows, with their outcome.
            number: Its number; what is there under it, uncommitted, is replaced.
            run_id: Who writes.
            rows: How many there must be; None where the input may change while it is read.
            about: More of what `Increment` holds; `began` (of time.monotonic) instead of `seconds`.

        Raises:
            JobError: There are more rows or fewer.
            BusyError: The output is another driver's by now.
        """
        name = name_of(number)
        draft = f"{_WRITING}/{run_id}/{name}" if self.folder.renames else name
        self.write_rows(scored, draft)
        counts = count_outcomes(self.read(scored.sparkSession, draft), self._settings.output.name)
        if rows is not None and counts.rows != rows:
            raise JobError(
                f"increment {number} was read as {rows:,} rows and written as {counts.rows:,}, and is not committed: "
                "its input, or what was written of it, was changed meanwhile"
            )
        return self.commit(draft, number, counts=counts, run_id=run_id, **about)

    def write_rows(self, scored: DataFrame, name: str) -> None:
        """Write rows by Spark's committer, replacing what is there."""
        with spark_conf(scored.sparkSession, _WRITE_CONF):
            scored.write.mode("overwrite").partitionBy("outcome").parquet(self.folder / name)
            if not any(entry.startswith("outcome=") for entry in self.folder.entries(name)):
                empty = scored.drop("outcome").limit(0).coalesce(1)  # so that the schema of no rows can be read
                empty.write.mode("overwrite").parquet(self.folder / f"{name}/outcome=succeeded")

    def read(self, spark: SparkSession, name: str) -> DataFrame:
        return spark.read.parquet(self.folder / name)

    def commit(
        self, draft: str, number: int, *, counts: Committed, run_id: str, began: float | None = None, **about: Any
    ) -> Increment:
        """Mark an increment that is written as committed, and put it in its place."""
        seconds = 0.0 if began is None else round(time.monotonic() - began, 3)
        made = Increment(number=number, run_id=run_id, committed_at="", seconds=seconds, counts=counts, **about)
        return self.place(draft, made)

    def place(self, draft: str, made: Increment, name: str | None = None) -> Increment:
        """Commit rows that are written: mark them, and put them in their place.

        Args:
            draft: Where they are written.
            made: What they are.
            name: Their place; None takes the one where readers look for it.

        Raises:
            BusyError: The output is another driver's by now.
        """
        self._claim.check()
        made = replace(made, committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
        name = name or name_of(made.number)
        self.folder.write_json(f"{draft}/{_MARK}", asdict(made))
        if draft != name:
            self.folder.delete(name)
            self.folder.rename(draft, name)
        return made

    def write_report(self, run_id: str, report: dict[str, Any]) -> str:
        """Keep a run's report; returns its path.

        Raises:
            JobError: It cannot be written; what is committed stays.
        """
        name = f"{RUNS}/{run_id}.json"
        try:
            self.folder.write_json(name, report)
        except OSError as error:
            raise JobError(f"all is committed but the run's report, which cannot be written: {error}") from error
        return self.folder / name

    def _check_ours(self) -> None:
        entries = [entry for entry in self.folder.entries() if entry != _HOME]
        if entries and not self.folder.exists(_JOB):
            raise OutputError(
                f"output.path {self.path} holds {entries[0]} and no gristmill job; name an empty directory"
            )

    def _check_whole(self) -> None:
        """Everything that the checkpoint takes for done is there: what was taken away would never be scored again."""
        last = self.checkpoint().last_committed()
        there = {increment.number for increment in self.increments() if not increment.is_retry}
        gone = sorted(set(range(last + 1)) - there)
        if gone:
            raise OutputError(
                f"output.path {self.path} has lost {name_of(gone[0])}, which had been committed; put it back, or start "
                "afresh with --overwrite"
            )
        if there and last < 0 and max(there) > 0:
            raise OutputError(
                f"output.path {self.path} has increments, but {CHECKPOINT} is gone; put it back, or start afresh with "
                "--overwrite"
            )

    def _throw_away(self) -> None:
        """Empty the directory but for the lock. A kill in the middle leaves a note: here is nothing to go on with."""
        if self.folder.exists(_JOB):
            self.folder.write_json(_JOB, {"thrown_away": True})
        for entry in self.folder.entries():
            if entry.startswith("increment="):
                self.folder.delete(entry)
        for entry in self.folder.entries(_HOME):
            if not entry.startswith(("lock", "job.json")):
                self.folder.delete(f"{_HOME}/{entry}")

    def _tidy(self) -> None:
        """Leave nothing where nothing was begun."""
        if not self.folder.exists(_JOB) and not self._claim.fault():
            with contextlib.suppress(OSError):
                self.folder.delete(_HOME)
                if not self.folder.entries():
                    self.folder.delete("")


def read_increments(folder: files.Folder) -> list[Increment]:
    """All that is committed in an output directory, in order."""
    names = [name for name in folder.entries() if name.startswith("increment=")]
    marks = folder.read_all_json([f"{name}/{_MARK}" for name in names])
    return sorted((Increment.from_json(mark) for mark in marks if mark), key=lambda i: i.number)


def name_of(number: int) -> str:
    """The directory of an increment."""
    return f"increment={number:06d}"


def describe(settings: Settings) -> dict[str, Any]:
    """Whose output it is: what decides a row's answer, which rows there are, and how they are written."""
    source = settings.input.model_dump(mode="json", include={"path", "format", "options", "table", "query"})
    layout = {"output.columns": settings.output.columns, "output.name": settings.output.name}
    if exploded := settings.exploded():
        layout["score.variants"] = list(exploded[1])
    return {**fingerprint(settings), **{f"input.{key}": value for key, value in source.items()}, **layout}


def fingerprint(settings: Settings) -> dict[str, Any]:
    """What decides a row's answer: the spec, the text and the model's very files."""
    spec = settings.spec()
    hashes = open_model(spec.model, spec.revision).hashes()
    return {
        **spec.decides_answers(),
        "template": settings.score.text or settings.score.prompt,
        "model_files": hashes,
        "gristmill": _MAJOR,
    }


def count_outcomes(results: DataFrame, name: str) -> Committed:
    """Sum up the rows of an output.

    Args:
        results: What Spark reads from an output directory.
        name: The result column.
    """
    from pyspark.sql import functions as F

    usage, tokens = F.col(f"`{name}`.usage"), USAGE
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
