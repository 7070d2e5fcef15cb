"""Show what a job would do, and score nothing."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output import Output
from jobs.plan import make_plan, take_samples
from jobs.score import check_model, tell_ignored_settings
from jobs.session import open_session
from jobs.settings import Settings
from jobs.sources import explode_variants, read_input
from udfs.spec import GENERATING

_SHOWN = 200  # characters of a text
_SHOWN_OF_PROMPTS = 1_000  # an instruction may stand at their end


def show_plan(settings: Settings, console: Console, *, spark_log: str | None = None) -> None:
    """Print the schema, three rendered texts with their tokens, and the plan.

    Raises:
        The same errors as `score` before it writes, but for an output that is taken, which is told and no error.
    """
    check_model(settings)
    for warning in tell_ignored_settings(settings):
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    output = Output(settings)
    spark = open_session(settings.spark, spark_log=spark_log)
    frame = explode_variants(read_input(spark, settings), settings)
    plan = make_plan(frame, settings)
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in frame.schema.fields)
    console.print(f"[bold]columns[/]  {escape(columns)}", soft_wrap=True)
    texts = Table("tokens", "text", title="the first rows", title_justify="left")
    limit = _SHOWN_OF_PROMPTS if settings.score.task in GENERATING else _SHOWN
    for sample in take_samples(frame, settings):
        shown = (sample.text or "")[:limit] + ("…" if len(sample.text or "") > limit else "")
        cut = ", cut" if sample.truncated else ""
        texts.add_row(f"{sample.tokens}{cut}", escape(shown) if sample.text else f"[red]{sample.error}[/]")
    console.print(texts)
    console.print(
        f"[bold]plan[/]     {plan.rows:,} rows in {plan.partitions} tasks, windows of "
        f"{settings.batching.window_rows:,} rows, {escape(settings.score.task)} by {escape(settings.score.model)}, "
        f"to {escape(output.path)}",
        soft_wrap=True,
    )
