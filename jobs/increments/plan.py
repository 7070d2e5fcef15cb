"""What a job is about to do: how many rows, in how many tasks, and what their texts look like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.input.kinds import as_sent, can_hash, column, spelt
from jobs.input.reading import count_rows
from jobs.input.sources import kept_columns
from jobs.serving import serve
from jobs.settings import Settings
from jobs.spark.session import count_slots
from udfs.errors import EMPTY_INPUT, INPUT_TOO_LONG
from udfs.factory import make_reader, make_request_udf, make_udf
from udfs.hosted.asking import Question, ask_about
from udfs.hosted.tasks import HostedTask, make_hosted
from udfs.model.files import open_model_of
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.text_classification import reads_pairs
from udfs.tasks.writing import Writing
from udfs.text.pairs import split_pair

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_LEAST_ROWS = 64  # fewer rows in a task are not worth its start
_TASKS_PER_SLOT = 4  # so that the slots end at about the same time, and progress is seen


@dataclass(frozen=True)
class Plan:
    """How the input is spread.

    Args:
        rows: Rows of the input.
        partitions: Spark tasks that score them.
    """

    rows: int
    partitions: int


@dataclass(frozen=True)
class Sample:
    """One row as it would be sent: its text, or why it has none, and its tokens. A model that writes sees prompts."""

    text: str | None
    error: str | None
    tokens: int
    truncated: bool
    text_pair: str | None = None


def make_plan(frame: DataFrame, settings: Settings) -> Plan:
    """Count the input and choose the number of tasks.

    Raises:
        InputError: The rows cannot be read.
    """
    rows = count_rows(frame)
    return Plan(rows, plan_partitions(rows, count_slots(frame.sparkSession), settings))


def plan_partitions(rows: int, slots: int, settings: Settings) -> int:
    """Spark tasks for so many rows."""
    by_window = -(-rows // (2 * settings.batching.window_rows))
    by_slots = min(_TASKS_PER_SLOT * slots, -(-rows // _LEAST_ROWS))
    wanted, endpoint = max(1, by_window, by_slots), settings.endpoint()
    if endpoint is None or slots <= endpoint.max_in_flight_requests:
        return wanted
    return min(wanted, endpoint.max_in_flight_requests)  # a task asks once at a time at least


def score_frame(
    frame: DataFrame, settings: Settings, plan: Plan, *, deadline: float | None = None, keep: Sequence[str] = ()
) -> DataFrame:
    """The input with the result column and its outcome; lazy.

    Args:
        frame: The rows.
        settings: The job.
        plan: How they are spread.
        deadline: In seconds since 1970; rows that are not scored by then fail as `expired`.
        keep: Columns to keep besides those that the settings name.
    """
    name, kept = settings.output.result, kept_columns(frame, settings)
    scored = spread_rows(frame, settings, plan).select(
        *(column(c) for c in (*kept, *keep)),
        _make_answerer(frame.sparkSession, settings, deadline)(text_of(frame, settings)).alias(name),
    )
    return with_outcome(scored, settings)


def with_outcome(scored: DataFrame, settings: Settings) -> DataFrame:
    """Rows with the outcome that their result column tells."""
    from pyspark.sql import functions as F

    outcome = F.when(column(settings.output.result)["error"].isNull(), "succeeded").otherwise("failed")
    return scored.withColumn("outcome", outcome)


def spread_rows(frame: DataFrame, settings: Settings, plan: Plan) -> DataFrame:
    """Rows spread by the hash of their text, so that identical texts meet in one task and are scored once."""
    return frame.repartition(plan.partitions, *hashed(frame, settings))


def _make_answerer(spark: SparkSession, settings: Settings, deadline: float | None) -> Any:
    if settings.models:
        return make_request_udf(serve(settings, deadline=deadline))
    return make_udf(spec_for(spark, settings, deadline=deadline))


def spec_for(spark: SparkSession, settings: Settings, *, deadline: float | None = None) -> ScoreSpec[Any]:
    """What goes to the executors; of a hosted model that they ask themselves, each task's share of the limits."""
    spec = settings.spec(deadline=deadline)
    if spec.endpoint is None:
        return spec
    workers = min(count_slots(spark), spec.endpoint.max_in_flight_requests)
    return replace(spec, endpoint=spec.endpoint.share(workers))


def take_samples(frame: DataFrame, settings: Settings, count: int = 3) -> list[Sample]:
    """Read the first rows as the job reads them, and tokenize them on the driver, without the model's weights."""
    spec = settings.spec()
    rows = frame.limit(count).select(make_reader(spec)(text_of(frame, settings)).alias("read")).select("read.*")
    if settings.is_hosted():
        return [_ask_sample(text, error, make_hosted(spec)) for text, error, _ in rows.collect()]
    task = make_task(spec, open_model_of(spec))
    samples = []
    for text, error, _ in rows.collect():
        tokenized = task.tokenize([text] if text else [])
        tokens, truncated = int(tokenized.items.lengths.sum()), bool(tokenized.truncated.any())
        shown = "\n\n".join(task.show(tokenized.items)) if isinstance(task, Writing) and text else text
        shown, text_pair = split_pair(text) if text and reads_pairs(spec) else (shown, None)
        if text and not tokens:
            why = INPUT_TOO_LONG if truncated else EMPTY_INPUT
            shown, error = None, next(iter(tokenized.failures.values()), why).code
        samples.append(Sample(shown, error, tokens, truncated, text_pair))
    return samples


def _ask_sample(text: str | None, error: str | None, task: HostedTask) -> Sample:
    """A row as its provider would be asked about it, its tokens estimated."""
    question = ask_about(text, task) if text else None
    if isinstance(question, Question):
        shown = "\n\n".join(json.dumps(json.loads(r.line), ensure_ascii=False, indent=1) for r in question.requests)
        return Sample(shown, None, sum(request.tokens for request in question.requests), False)
    return Sample(None, error if question is None else question.code, 0, False)


def text_of(frame: DataFrame, settings: Settings, *, whole: bool | None = None) -> Column:
    """What the text is made of, as one column: what `make_udf` takes, or with `whole` what reads Arrow itself."""
    from pyspark.sql import functions as F

    names = settings.text_columns()
    kinds = [frame.schema[spelt(frame.columns, name)].dataType for name in names]
    sent = [as_sent(column(name), kind, whole=whole) for name, kind in zip(names, kinds, strict=True)]
    return (
        F.struct(*(c.alias(name) for c, name in zip(sent, names, strict=True))) if settings.is_templated() else sent[0]
    )


def hashed(frame: DataFrame, settings: Settings) -> list[Column]:
    """What identical texts have in common: the columns that Spark hashes, or what it writes of the others."""
    from pyspark.sql import functions as F

    names = settings.text_columns()
    hashed = [name for name in names if can_hash(frame.schema[spelt(frame.columns, name)].dataType.simpleString())]
    return [column(name) for name in hashed] or [F.to_json(F.struct(*(column(name) for name in names)))]
