"""Rows whose answers come by a provider's batches: asked and joined on the executors, sent by the driver.

Rows never come to the driver. Each belongs to a bucket, by the hash of its text; a request bears the buckets of the
rows that ask it, a reply goes to those buckets, and there one UDF sees the replies first and then the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.errors import EndpointError, OutputError
from jobs.hosted.flight import Flight, Landed, Standing, Tempo, cancel_flight
from jobs.hosted.ledger import RESULTS, Asked, Ledger, find_ledgers
from jobs.hosted.money import Purse, price_of
from jobs.hosted.provider import (
    BusyProviderError,
    LostReplyError,
    Provider,
    RefusedError,
    UnknownBatchError,
    Usage,
)
from jobs.hosted.services import open_provider
from jobs.increments.plan import Plan, hashed, spread_rows, text_of, with_outcome
from jobs.input.kinds import column
from jobs.input.sources import OWN, kept_columns
from jobs.input.spans import Span
from jobs.keys import find_key
from jobs.output.committed import add_up
from jobs.output.directory import Output
from jobs.settings import Settings
from udfs.factory import make_answer_udf, make_ask_udf
from udfs.hosted.answering import REPLY, TEXT
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.tasks import make_hosted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_BUCKETS = 4096
_LISTED = 20  # polls
_BUCKET, _REPLY = f"{OWN}bucket", f"{OWN}reply"
_BYTES = 64 << 20  # of replies that a task holds
_LINES = {"lineSep": "\n"}  # Spark would end a line at other characters too


@dataclass(frozen=True)
class Answered:
    """Replies to the requests of some rows.

    Args:
        replies: With the bucket of the rows that wait for each.
        bytes: Of them.
        asked, landed: What was asked, and what became of it.
        ledger: Whose; it goes once the rows are committed.
    """

    replies: DataFrame
    bytes: int
    asked: Asked
    landed: Landed
    ledger: Ledger

    def counts(self) -> dict[str, int]:
        """What an increment's mark keeps of it."""
        made, landed = self.asked, self.landed
        return {
            "made": made.made,
            "sent": made.lines,
            "made_tokens": made.made_tokens,
            "sent_tokens": made.tokens,
            "batches": landed.batches,
            "unsent": landed.unsent,
        }


def open_provider_of(settings: Settings) -> Provider:
    """The provider of a job's batches.

    Raises:
        EndpointError: No key, or no client.
    """
    spec = settings.spec()
    return open_provider(spec.endpoint, find_key(spec.endpoint), model=spec.model, path=make_hosted(spec).path)


def answer_in_batches(
    frame: DataFrame,
    settings: Settings,
    plan: Plan,
    output: Output,
    number: int,
    *,
    check: Callable[[], None],
    left_s: Callable[[], float | None],
    tell: Callable[[Standing], None],
    about: dict[str, Any] | None = None,
) -> Answered:
    """Have a provider answer rows; goes on where a run before was killed.

    Args:
        frame: The rows.
        settings: The job.
        plan: How they are spread.
        output: Whose ledger tells what is sent already.
        number: Of the increment.
        check, left_s, tell: As of `Flight`.
        about: What its rows are found by: those of a retry, and of a table whose log goes on.

    Raises:
        The errors of `Flight.fly`.
    """
    endpoint, ledger = settings.spec().endpoint, Ledger(output.folder, output.home, number)
    provider = open_provider_of(settings)
    asked = ledger.asked() or _ask(frame, settings, plan, ledger, about or {})
    tempo = Tempo(endpoint.max_in_flight_batches, endpoint.max_in_flight_tokens, endpoint.poll_s)
    if endpoint.is_loopback:  # a server of one's own lists at once
        tempo = replace(tempo, listed_s=max(0.5, min(tempo.listed_s, _LISTED * tempo.poll_s)))
    purse = Purse(endpoint.price, settings.limits.max_usd, _spent_usd(output, endpoint))
    flight = Flight(ledger, asked, provider, tempo=tempo, purse=purse, check=check, left_s=left_s, tell=tell)
    landed = flight.fly()
    return Answered(*_read_replies(frame.sparkSession, ledger), asked, landed, ledger)


def asked_span(output: Output, number: int) -> tuple[Span, int] | None:
    """What an increment of an Iceberg table is made of that a run before has asked a provider about, and its bytes."""
    asked = Ledger(output.folder, output.home, number).asked()
    if asked is None or "span" not in asked.about:
        return None
    return Span.from_json(asked.about["span"]), int(asked.about["bytes"])


def forget_committed(output: Output) -> None:
    """Take away what was noted of requests whose increments are committed; a kill has kept their run from it."""
    kept = {mark.made.number for mark in output.retries()}
    for ledger in find_ledgers(output.folder, output.home):
        if ledger.number in kept or output.is_committed(ledger.number):
            ledger.delete()


def check_none_flies(output: Output) -> None:
    """Refuse to start afresh where batches are on their way: nobody would collect what is paid.

    Raises:
        OutputError: They are.
    """
    flying = [b for ledger in find_ledgers(output.folder, output.home) for b in ledger.batches() if not b.is_over]
    if any(batch.cancelled is None for batch in flying):
        raise OutputError(
            f"{len(flying):,} batches that this output has asked a provider for are not collected; go on without "
            "--overwrite, or cancel them with --cancel first"
        )


def cancel_batches(output: Output, settings: Settings) -> list[str]:
    """Cancel what is in flight; what was answered already is collected by the next run.

    Returns:
        A line for each batch.

    Raises:
        EndpointError: It cannot be asked.
    """
    told, provider = list[str](), open_provider_of(settings)
    try:
        for ledger in find_ledgers(output.folder, output.home):
            for batch, became in cancel_flight(ledger, provider):
                requests = f"{batch.cut.requests:,} requests of increment {ledger.number}"
                told.append(f"{batch.id or 'a batch'} with {requests} {became}")
    except (LostReplyError, BusyProviderError, RefusedError, UnknownBatchError) as error:
        raise EndpointError(f"{error}; so far: {'; '.join(told) or 'nothing is cancelled'}. Try again") from error
    return told


def join_replies(
    frame: DataFrame, settings: Settings, plan: Plan, answered: Answered, *, keep: Sequence[str] = ()
) -> DataFrame:
    """The rows with their result column and its outcome, out of the replies to their requests; lazy.

    Args:
        frame, settings, plan: As of `answer_in_batches`.
        answered: The replies.
        keep: Columns to keep besides those that the settings name.
    """
    from pyspark.sql import functions as F

    tasks = max(plan.partitions, -(-answered.bytes // _BYTES))
    rows = frame.select("*", _bucket(frame, settings), F.lit(None).cast("string").alias(_REPLY))
    both = rows.unionByName(answered.replies, allowMissingColumns=True)
    spread = both.repartition(tasks, _BUCKET).sortWithinPartitions(column(_REPLY).isNull())
    told = F.struct(text_of(spread, settings).alias(TEXT), column(_REPLY).alias(REPLY))
    answer = make_answer_udf(settings.spec())(told).alias(settings.output.result)
    kept = [column(name) for name in (*kept_columns(frame, settings), *keep)]
    answers = spread.select(*kept, column(_REPLY), answer).where(column(_REPLY).isNull()).drop(_REPLY)
    return with_outcome(answers, settings)


def _ask(frame: DataFrame, settings: Settings, plan: Plan, ledger: Ledger, about: dict[str, Any]) -> Asked:
    """Have the executors write the requests of rows, each once."""
    from pyspark.sql import functions as F

    spread = spread_rows(frame, settings, plan)
    told = make_ask_udf(settings.spec())(text_of(spread, settings)).alias("asked")
    asked = spread.select(_bucket(spread, settings), told)
    each = asked.select(_BUCKET, F.explode("asked.requests").alias("request")).select(_BUCKET, "request.*")
    once = each.groupBy("id").agg(
        F.first("tokens").cast("string").alias("tokens"),
        F.count(F.lit(1)).cast("string").alias("times"),
        F.array_join(F.sort_array(F.collect_set(column(_BUCKET))).cast("array<string>"), ",").alias("buckets"),
        F.first("line").alias("line"),
    )
    lines = once.select(F.concat_ws("\t", "id", "tokens", "times", "buckets", "line").alias("value"))
    lines.write.mode("overwrite").options(compression="none", **_LINES).text(ledger.asked_path)
    return ledger.keep_asked(about=about, **_count(frame.sparkSession, ledger))


def _count(spark: SparkSession, ledger: Ledger) -> dict[str, int]:
    """Sums over the requests as they were written."""
    from pyspark.sql import functions as F

    told = F.split(F.substring_index("value", "\t", 3), "\t")
    lines = spark.read.options(**_LINES).text(ledger.asked_path)
    each = lines.select(told[1].cast("long").alias("tokens"), told[2].cast("long").alias("times"))
    (row,) = each.agg(
        F.count(F.lit(1)).alias("lines"),
        F.coalesce(F.sum("tokens"), F.lit(0)).alias("tokens"),
        F.coalesce(F.sum("times"), F.lit(0)).alias("made"),
        F.coalesce(F.sum(column("tokens") * column("times")), F.lit(0)).alias("made_tokens"),
    ).collect()
    return {name: int(value) for name, value in row.asDict().items()}


def _read_replies(spark: SparkSession, ledger: Ledger) -> tuple[DataFrame, int]:
    """The replies that are here, and their size in bytes."""
    from pyspark.sql import functions as F

    size = ledger.result_bytes()
    if not size:
        return spark.createDataFrame([], f"{_BUCKET} int, {_REPLY} string"), 0
    lines = spark.read.options(pathGlobFilter=f"*{RESULTS}", **_LINES).text(ledger.results_path)
    bucket = F.substring_index("value", "\t", 1).cast("int")
    reply = F.expr("substring(value, locate('\t', value) + 1)")
    return lines.select(bucket.alias(_BUCKET), reply.alias(_REPLY)), size


def _bucket(frame: DataFrame, settings: Settings) -> Column:
    from pyspark.sql import functions as F

    return F.pmod(F.hash(*hashed(frame, settings)), F.lit(_BUCKETS)).alias(_BUCKET)


def _spent_usd(output: Output, endpoint: Endpoint) -> float:
    """What the output has cost so far, by the prices of today's settings."""
    counts = add_up(increment.counts for increment in output.increments())
    usage = Usage(counts.input_tokens, counts.output_tokens, counts.cached_tokens)
    return price_of(usage, endpoint.price, in_batches=True) if endpoint.price else 0.0
