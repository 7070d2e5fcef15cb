"""A few rows of the answers, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from jobs.errors import SPARK_ERRORS
from jobs.output.directory import Output
from jobs.settings import Settings
from jobs.spark.session import open_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_WIDTH = 44  # characters of a cell
_PARTS = 3  # of a list
_SHORT = 12  # characters of cells that keep their width in a narrow terminal
_COMMON = {"error", "usage", "truncated", "engine"}


def answer_table(settings: Settings, rows: int) -> Table:
    """The first rows of a job's output: the columns that were kept, then the answer or the error."""
    output = Output(settings)
    found = output.read_rows(_find_session(settings)).limit(rows).collect() if output.marks() else []
    name = settings.output.result
    table = Table(box=None, pad_edge=False, header_style="dim")
    kept = [c for c in (found[0].asDict() if found else {}) if c not in (name, "outcome", "increment")]
    answers = [c for c in (found[0][name].asDict() if found else {}) if c not in _COMMON]
    lines = list[list[Text]]()
    for row in found:
        answer = row[name]
        failed = [_line(answer["error"]["code"], "red")] if answer["error"] else None
        cells = failed or [_line(_cell(answer[column])) for column in answers]
        lines.append([*(_line(_cell(row[column])) for column in kept), *cells])
    for place, column in enumerate((*kept, *answers)):
        longest = max((len(line[place]) for line in lines if place < len(line)), default=0)
        table.add_column(column, no_wrap=longest <= _SHORT)  # where it is narrow, the others give way
    for line in lines:
        table.add_row(*line)
    return table


def _find_session(settings: Settings) -> SparkSession:
    """The run's session; one that had nothing to do has started none."""
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except SPARK_ERRORS:
        return open_session(settings.spark)


def _line(cell: str, style: str = "") -> Text:
    return Text(cell, style=style, no_wrap=True, overflow="ellipsis")


def _cell(value: Any) -> str:
    match value:
        case float():
            text = f"{value:.3f}"
        case bytes() | bytearray():
            text = f"{value[:_PARTS].hex(' ')}{' …' if len(value) > _PARTS else ''} ({len(value)} bytes)"
        case dict() if not all(isinstance(v, int | float) for v in value.values()):
            text = ", ".join(f"{name}: {_cell(v)}" for name, v in value.items())
        case dict():
            best = sorted(value.items(), key=lambda item: -item[1])
            text = ", ".join(f"{label} {score:.2f}" for label, score in best)
        case tuple():  # a Row
            text = ", ".join(_cell(v) for v in value)
        case list():
            parts = [*(_cell(v) for v in value[:_PARTS]), *(["…"] if len(value) > _PARTS else [])]
            text = f"[{', '.join(parts)}] ({len(value)})"
        case _:
            text = "" if value is None else " ".join(str(value).split())
    return text[: _WIDTH - 1] + "…" if len(text) > _WIDTH else text
