"""Show what a job would do, and score nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.errors import SPARK_ERRORS, OutputError, TooManyFailed, unreadable_input
from jobs.increments.forecasting import forecast
from jobs.increments.plan import Sample, make_plan, take_samples
from jobs.increments.scoring import check_last_run
from jobs.input.drift import tell_partitions
from jobs.input.files import tell_malformed
from jobs.input.kinds import column
from jobs.input.reading import read_whole
from jobs.input.records import raw_column
from jobs.input.sources import explode_variants, find_kind, read_input
from jobs.layout import answer_columns
from jobs.output.directory import Output
from jobs.preflight import check_model, name_ends, show_warning, tell_ignored_settings
from jobs.serving import serve
from jobs.settings import Settings
from jobs.spark.loss import telling_of_loss
from jobs.spark.session import keep_noise, open_session
from udfs.model.files import open_model_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_SHOWN = 200  # characters of a text
_SHOWN_OF_PROMPTS = 1_000  # an instruction may stand at their end


def show_plan(settings: Settings, console: Console, *, overwrite: bool = False, spark_log: str | None = None) -> None:
    """Print the schema, three rendered texts with their tokens, and the plan.

    Raises:
        The same errors as `score` before it writes, but for an output that it would refuse, which is told.
    """
    settings = check_model(settings)
    for warning in tell_ignored_settings(settings):
        show_warning(console, warning)
    if settings.models:
        _show_models(settings, console)
        return
    output = Output(settings)
    with telling_of_loss("run the same command again"):
        spark = open_session(settings.spark, spark_log=spark_log)
        with keep_noise():
            _show(settings, spark, output, console, overwrite=overwrite)


def _show_models(settings: Settings, console: Console) -> None:
    """What each model that requests may name can do; the requests themselves are read as the job begins."""
    for served in serve(settings).models:
        for kind, spec in (("write", served.write), ("embed", served.embed)):
            told = f"is {spec.model}" if spec else f"does not: {dict(served.problems)[kind]}"
            console.print(f"[bold]{escape(served.name)}[/]  to {kind}, {escape(told)}", soft_wrap=True, highlight=False)
    source = settings.input.path or settings.input.table or "the query"
    console.print(
        f"[bold]plan[/]     {escape(str(settings.dialect()))}: {escape(source)} to {escape(settings.output.path)}"
    )


def _show(settings: Settings, spark: SparkSession, output: Output, console: Console, *, overwrite: bool) -> None:
    read = read_input(spark, settings)
    if refusal := _why_refused(output, read, settings, overwrite=overwrite):
        show_warning(console, refusal)
    if find_kind(spark, settings.input) == "files":
        for warning in tell_partitions(read.schema, sorted(read.inputFiles())):
            show_warning(console, warning)
    frame, raw = explode_variants(read, settings), raw_column(settings.input)
    fields = [field for field in frame.schema.fields if field.name != raw]
    if raw is not None:
        frame = _read_records(spark, settings, read, console)
    plan = make_plan(frame, settings)
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in fields)
    console.print(f"[bold]columns[/]  {escape(columns)}", soft_wrap=True)
    console.print(_make_table(take_samples(frame.where(column(raw).isNull()) if raw else frame, settings), settings))
    if settings.spec().options.writes and not settings.is_hosted():
        files = open_model_of(settings.spec())
        ends = ", ".join(name_ends(files)) or "nothing that the model's files name: max_new_tokens alone"
        console.print(f"[bold]ends[/]     an answer ends with {escape(ends)}", soft_wrap=True)
    console.print(f"[bold]answers[/]  {escape(_tell_answers(settings))}", soft_wrap=True, highlight=False)
    if settings.is_hosted():
        for line in forecast(frame, settings, plan.rows).lines():
            console.print(f"[bold]forecast[/] {escape(line)}", soft_wrap=True, highlight=False)
    console.print(
        f"[bold]plan[/]     {plan.rows:,} rows in {plan.partitions} tasks, windows of "
        f"{settings.batching.window_rows:,} rows, {escape(settings.score.task)} by {escape(settings.score.model)}, "
        f"to {escape(settings.output.place)}",
        soft_wrap=True,
    )


def _tell_answers(settings: Settings) -> str:
    """The columns of the answers, with their types."""
    from pyspark.sql.pandas.types import from_arrow_type

    columns = answer_columns(settings).items()
    return ", ".join(f"{name} {from_arrow_type(kind).simpleString()}" for name, kind in columns)


def _make_table(samples: list[Sample], settings: Settings) -> Table:
    """Tokens and text of each sample; of pairs both texts."""
    pairs = [] if settings.score.text_pair is None else ["text_pair"]
    heads = ("tokens, estimated", "requests") if settings.is_hosted() else ("tokens", "text")
    table = Table(*heads, *pairs, title="the first rows", title_justify="left")
    limit = _SHOWN_OF_PROMPTS if settings.spec().options.writes or settings.is_hosted() else _SHOWN
    for sample in samples:
        texts = [sample.text or "", *([sample.text_pair or ""] if pairs else [])]
        shown = [escape(text[:limit] + ("…" if len(text) > limit else "")) for text in texts]
        if not sample.text:
            shown[0] = f"[red]{sample.error}[/]"
        table.add_row(f"{sample.tokens}{', cut' if sample.truncated else ''}", *shown)
    return table


def _read_records(spark: SparkSession, settings: Settings, read: DataFrame, console: Console) -> DataFrame:
    """The input as a run reads it, record by record; what does not fit is told."""
    try:
        found = read_whole(spark, settings, read.schema, sorted(read.inputFiles()))
    except SPARK_ERRORS as error:
        raise unreadable_input(error) from error
    for warning in (*found.told, *tell_malformed(found.counts.malformed)):
        show_warning(console, warning)
    return found.frame


def _why_refused(output: Output, frame: DataFrame, settings: Settings, *, overwrite: bool) -> str | None:
    """Why a run would refuse the output; None if it would not."""
    spark = frame.sparkSession
    try:
        output.check(spark, overwrite=overwrite)
        if not overwrite:
            output.check_input(frame, find_kind(spark, settings.input))
            check_last_run(output, settings)
    except (OutputError, TooManyFailed) as error:
        return str(error)
    return None
