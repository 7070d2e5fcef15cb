"""A few rows of the answers, for people."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from jobs.settings import Settings

_WIDTH = 44  # characters of a cell
_COMMON = {"error", "usage", "truncated", "engine"}


def answer_table(settings: Settings, rows: int) -> Table:
    """The first rows of a job's output: the columns that were kept, then the answer or the error."""
    from pyspark.sql import SparkSession

    spark = SparkSession.active()
    found = spark.read.parquet(settings.output.path).limit(rows).collect()
    name = settings.output.name
    table = Table(box=None, pad_edge=False, header_style="dim")
    kept = [c for c in (found[0].asDict() if found else {}) if c not in (name, "outcome", "increment")]
    answers = [c for c in (found[0][name].asDict() if found else {}) if c not in _COMMON]
    for column in (*kept, *answers):
        table.add_column(column, no_wrap=True)
    for row in found:
        answer = row[name]
        failed = [f"[red]{answer['error']['code']}[/]"] if answer["error"] else None
        cells = failed or [_cell(answer[column]) for column in answers]
        table.add_row(*(_cell(row[column]) for column in kept), *cells)
    return table


def _cell(value: Any) -> str:
    match value:
        case float():
            text = f"{value:.3f}"
        case dict() if not all(isinstance(v, int | float) for v in value.values()):
            text = ", ".join(f"{name}: {_cell(v)}" for name, v in value.items())
        case dict():
            best = sorted(value.items(), key=lambda item: -item[1])
            text = ", ".join(f"{label} {score:.2f}" for label, score in best)
        case tuple():  # a Row
            text = ", ".join(_cell(v) for v in value)
        case list():
            text = f"[{', '.join(_cell(v) for v in value[:3])}, …] ({len(value)})"
        case _:
            text = "" if value is None else " ".join(str(value).split())
    return escape(text[: _WIDTH - 1] + "…" if len(text) > _WIDTH else text)
