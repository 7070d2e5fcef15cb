"""Score failed rows again, and append those that succeed as an increment of their own.

Nothing is rewritten: the failed row stays where it is, the good one is appended. What was retried is kept under
`_gristmill/retries/`, each row with the file and the place of its failed row, so that none succeeds twice. That is
written first, and commits the retry; what readers see of it is copied from there, by this run or by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.errors import SPARK_ERRORS, DeadlineReached, InputError, JobError, as_job_error
from jobs.hosted.ledger import Ledger
from jobs.increments.batches import answer_in_batches, join_replies
from jobs.increments.calibrating import settle_ranges
from jobs.increments.listener import Listener
from jobs.increments.plan import Plan, plan_partitions, score_frame
from jobs.increments.scoring import Run, check_goes_on
from jobs.increments.sizing import TARGET_S
from jobs.input.checkpoint import path_of
from jobs.input.json_lines import look_at_lines
from jobs.input.kinds import column
from jobs.input.records import has_headers, read_headers
from jobs.input.sources import OWN, explode_variants, find_kind, read_files, read_input
from jobs.output.committed import RETRIES, Increment, count_outcomes, name_of
from jobs.output.directory import Output
from jobs.output.marks import Mark
from jobs.output.merging import WAS
from jobs.settings import Settings
from jobs.spark.interrupts import Stop
from jobs.spark.naming import named
from jobs.spark.session import count_slots, spark_conf
from udfs.errors import BAD_REQUEST, MALFORMED, UNTRIED

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FILE, _ROW, _CODE = f"{OWN}file_name", f"{OWN}row", f"{OWN}code"
_ROWS = 100_000  # of a retry, where no rate is known


@dataclass(frozen=True)
class Found:
    """Failed rows that are to be retried.

    Args:
        frame: The columns to keep, those of the text, and where each failed row lies.
        rows: How many.
        lost: Failed rows that cannot be told from others of the input, or are in it no more.
    """

    frame: DataFrame
    rows: int
    lost: int = 0


@dataclass(frozen=True)
class Choice:
    """What of the failed rows is retried together.

    Args:
        marks: Of their increments.
        only, again: As of `retry_all`.
        is_pending: A retry that was killed has asked a provider about them.
    """

    marks: Sequence[Mark]
    only: Sequence[str]
    again: bool
    is_pending: bool = False

    def about(self) -> dict[str, Any]:
        """What chooses the same rows again, ready for JSON."""
        return {"increments": [mark.made.number for mark in self.marks], "only": [*self.only], "again": self.again}


def retry_all(
    spark: SparkSession,
    settings: Settings,
    run: Run,
    *,
    only: Sequence[str],
    again: bool,
    warn: Callable[[str], None],
    listener: Listener,
    stop: Stop,
) -> None:
    """Retry failed rows, a few increments' at a time.

    Args:
        spark: The session.
        settings: The job, whose output is locked and in order.
        run: This run.
        only: Error codes; none for all.
        again: Those too that a retry has failed on.
        warn: Takes a line about rows that cannot be retried.
        listener: Is told how it goes.
        stop: Ends it.

    Raises:
        InputError: Neither the output nor a key leads to the rows' texts.
        DeadlineReached: Rows are left that were not tried.
        JobError: Spark gave up; what was committed stays.
    """
    output, lost, is_cut = run.output(settings), 0, False
    try:
        with spark_conf(spark, {"spark.sql.shuffle.partitions": str(count_slots(spark))}):
            for choice in [*_pending(output, settings), *_choices(output, settings, only, again=again)]:
                stop.check("interrupted")
                found = find_failed(spark, settings, output, choice.marks, only=choice.only, again=choice.again)
                lost += found.lost
                if is_cut := found.rows > 0 and run.is_late():
                    break
                if not found.rows and choice.is_pending:
                    Ledger(output.folder, output.home, _next_number(output)).delete()
                if found.rows:
                    with named(spark, f"retry {_next_number(output) - RETRIES}: score"):
                        _retry(found, settings, run, listener, choice, stop)
    except SPARK_ERRORS as error:
        raise as_job_error(error) from error
    except OSError as error:
        raise JobError(f"what was retried cannot be committed: {error}") from error
    if lost:
        warn(f"{lost:,} failed rows are left as they are: input.key is null, is not alone or is no more in the input")
    if is_cut:
        raise DeadlineReached("the deadline has passed")


def publish_retries(spark: SparkSession, settings: Settings, run: Run) -> None:
    """Show readers what committed retries have scored, where a kill kept it from them."""
    output = run.output(settings)
    for mark in output.retries():
        if not output.is_committed(mark.made.number):
            with spark_conf(spark, {"spark.sql.shuffle.partitions": str(count_slots(spark))}):
                _publish(spark, output, mark)


def find_failed(
    spark: SparkSession, settings: Settings, output: Output, marks: Sequence[Mark], *, only: Sequence[str], again: bool
) -> Found:
    """The failed rows of some increments that are to be retried, with the columns of their texts.

    Where the output keeps those columns, the failed rows themselves are scored. Else they are looked up in the input
    by its key; a row whose key is null, or is not alone in the input, is left as it is.
    """
    from pyspark.sql import functions as F

    name = settings.output.result
    rows = output.frames.read_marked(spark, marks, outcome="failed")
    located = rows.select(
        *(column(c) for c in rows.columns if c not in (name, "outcome", "increment")),
        rows.metadataColumn("_metadata")["file_name"].alias(_FILE),
        rows.metadataColumn("_metadata")["row_index"].alias(_ROW),
        column(name)["error"]["code"].alias(_CODE),
        *([F.col("increment").alias(WAS)] if settings.output.mode == "merge" else []),
    )
    # What a record was meant to say is not known, and a request that is refused is refused again.
    refused = [MALFORMED.code, *([BAD_REQUEST.code] if settings.models else [])]
    located = located.where(~F.col(_CODE).isin(*refused))
    wanted = _not_retried(located, _retried(spark, output, name), again=again)
    if only:
        wanted = wanted.where(F.col(_CODE).isin(*only))
    failed = wanted.count()
    columns = {c.lower() for c in wanted.columns}
    if failed == 0 or all(c.lower() in columns for c in settings.text_columns()):
        return Found(wanted, failed)
    joined = _look_up(wanted, spark, settings, output)
    rows_found = joined.count()
    return Found(joined, rows_found, failed - rows_found)


def _retried(spark: SparkSession, output: Output, name: str) -> DataFrame | None:
    """Rows of earlier retries, with how the last one ended; those that came too late or were cancelled are untried."""
    from pyspark.sql import functions as F

    kept = output.retries()
    if not kept:
        return None
    tried = output.frames.read_marked(spark, kept).select(
        _FILE, _ROW, column(name)["error"]["code"].alias("code"), "outcome"
    )
    tried = tried.where(F.col("code").isNull() | ~F.col("code").isin(*UNTRIED))
    return tried.groupBy(_FILE, _ROW).agg(F.max((F.col("outcome") == "succeeded").cast("int")).alias("mended"))


def _not_retried(rows: DataFrame, tried: DataFrame | None, *, again: bool) -> DataFrame:
    if tried is None:
        return rows
    return rows.join(tried.where("mended = 1") if again else tried, [_FILE, _ROW], "left_anti")


def _look_up(failed: DataFrame, spark: SparkSession, settings: Settings, output: Output) -> DataFrame:
    """Failed rows with their texts, out of the input."""
    from pyspark.sql import functions as F

    key = settings.key()
    if not key or not {k.lower() for k in key} <= {c.lower() for c in failed.columns}:
        raise InputError(
            "the output does not hold the columns of score.text, so failed rows can be found in the input by its key "
            "alone; name it in input.key, and keep it in output.columns"
        )
    source = _read_scored(spark, settings, output)
    by_key = [column(k) for k in key]
    absent = [c for c in settings.text_columns() if c.lower() not in {f.lower() for f in failed.columns}]
    texts = [column(c) for c in absent]
    candidates = source.join(failed.select(*by_key).distinct(), key, "left_semi").select(*by_key, *texts)
    alone = candidates.groupBy(*by_key).agg(
        F.count(F.lit(1)).alias(f"{OWN}count"), *(F.first(t).alias(c) for t, c in zip(texts, absent, strict=True))
    )
    return failed.join(alone.where(f"{OWN}count = 1").drop(f"{OWN}count"), key, "inner")


def _read_scored(spark: SparkSession, settings: Settings, output: Output) -> DataFrame:
    """The input as far as it is scored: later rows of the same key are not those that failed."""
    frame = read_input(spark, settings, output.schema())
    if find_kind(spark, settings.input) != "files":
        return explode_variants(frame, settings)
    checkpoint = output.checkpoint()
    over = checkpoint.offset_of(max((i.number for i in output.increments() if not i.is_retry), default=-1))
    there = {path_of(uri) for uri in frame.inputFiles()}
    uris = [file.uri for file in checkpoint.seen() if file.offset <= over and file.path in there]
    headers = read_headers(spark, settings.input, uris) if has_headers(settings.input) else {}
    joined = look_at_lines(spark, settings.input, uris).joined
    return read_files(spark, settings, frame.schema, uris, headers, joined=joined)


def _retry(found: Found, settings: Settings, run: Run, listener: Listener, choice: Choice, stop: Stop) -> None:
    """Score rows again and commit what came of it."""
    from pyspark.sql import functions as F

    spark, output, began = found.frame.sparkSession, run.output(settings), time.monotonic()
    number = _next_number(output)
    plan = Plan(found.rows, plan_partitions(found.rows, count_slots(spark), settings))
    listener.begins(number, plan)
    deadline = run.deadline.timestamp() if run.deadline else None
    settings, _ = settle_ranges(found.frame, settings, output, rows=found.rows, deadline=deadline)
    draft = output.draft_of(f"retry={number}", run.run_id)
    keep = (_FILE, _ROW, _CODE, *([WAS] if settings.output.mode == "merge" else []))
    answered = None
    if settings.is_hosted_in_batches():
        check, left_s, about = (lambda: check_goes_on(run, stop)), run.left_s, choice.about()
        answered = answer_in_batches(
            found.frame, settings, plan, output, number, check=check, left_s=left_s, tell=listener.flies, about=about
        )
        scored = join_replies(found.frame, settings, plan, answered, keep=keep)
    else:
        scored = score_frame(found.frame, settings, plan, deadline=deadline, keep=keep)
    output.frames.write(scored, draft)
    rows = output.frames.read(spark, draft)
    mended = rows.where("outcome = 'succeeded'").groupBy(F.col(_CODE).alias("code")).count().collect()
    output.commit(
        draft,
        number,
        counts=count_outcomes(rows, settings.output.result),
        run_id=run.run_id,
        began=began,
        name=output.kept_name(number),
        mended=dict(sorted((row["code"], row["count"]) for row in mended)),
        requests=answered.counts() if answered else {},
    )
    listener.commits(_publish(spark, output, output.retries()[-1]))
    if answered:
        answered.ledger.delete()
        if answered.landed.spent_out:
            raise DeadlineReached(answered.landed.spent_out)


def _next_number(output: Output) -> int:
    return max((mark.made.number for mark in output.retries()), default=RETRIES - 1) + 1


def _choices(output: Output, settings: Settings, only: Sequence[str], *, again: bool) -> Iterator[Choice]:
    """All that is to be retried, in portions."""
    for marks in _portions(output.marks(), whole=settings.is_hosted_in_batches()):
        yield Choice(marks, only, again)


def _pending(output: Output, settings: Settings) -> Iterator[Choice]:
    """What a retry that was killed has asked a provider."""
    if not settings.is_hosted_in_batches():
        return
    if asked := Ledger(output.folder, output.home, _next_number(output)).asked():
        about = asked.about
        marks = [mark for mark in output.marks() if mark.made.number in about["increments"]]
        yield Choice(marks, about["only"], about["again"], is_pending=True)


def _publish(spark: SparkSession, output: Output, mark: Mark) -> Increment:
    """Show readers the good rows of a committed retry."""
    good = output.frames.read_marked(spark, [mark]).where("outcome = 'succeeded'").drop(_FILE, _ROW, _CODE)
    draft = output.draft_of(name_of(mark.made.number), mark.made.run_id)
    output.frames.write(good, draft)
    return output.place(draft, mark.made, spark=spark)


def _portions(marks: list[Mark], *, whole: bool) -> Iterator[list[Mark]]:
    """Increments with failed rows, in portions that take about ten minutes; or the `whole` of them."""
    increments = [mark.made for mark in marks]
    with_failed = [mark for mark in marks if not mark.made.is_retry and mark.made.counts.failed]
    seconds = sum(i.seconds for i in increments)
    rate = sum(i.counts.scored_rows for i in increments) / seconds if seconds else 0
    limit, held, rows = int(rate * TARGET_S) or _ROWS, list[Mark](), 0
    for mark in with_failed:
        if held and rows + mark.made.counts.failed > limit and not whole:
            yield held
            held, rows = [], 0
        held.append(mark)
        rows += mark.made.counts.failed
    if held:
        yield held


def check_codes(only: str | None) -> list[str]:
    """Error codes out of `--only a,b`.

    Raises:
        InputError: There is no such code.
    """
    from udfs import errors

    known = {value.code for value in vars(errors).values() if isinstance(value, errors.RowError)}
    known |= {"bad_template", "unreadable", "bad_options", "invalid_output", "provider_error"}
    asked = [code.strip() for code in (only or "").split(",") if code.strip()]
    if unknown := sorted(set(asked) - known):
        raise InputError(f"--only names {', '.join(unknown)}; the codes are {', '.join(sorted(known))}")
    if MALFORMED.code in asked:
        raise InputError(
            "--only names malformed: such rows are not retried; mend their records, and put them into a new file"
        )
    return asked
