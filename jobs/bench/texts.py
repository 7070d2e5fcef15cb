"""The texts that a benchmark scores."""

from __future__ import annotations

from jobs.bench.corpus import docstrings
from jobs.errors import InputError, UserError
from jobs.settings import Settings
from udfs.tasks.text_generation import make_asker
from udfs.text.templates import read_texts


def take_texts(settings: Settings, texts: str, rows: int) -> list[str]:
    """The texts that a benchmark scores: the job's own, or docstrings of the installed packages.

    Raises:
        UserError: There are none.
    """
    if texts in ("docstrings", "short"):
        return docstrings(rows, first_line=texts == "short")
    if texts != "input":
        raise UserError(f"--texts {texts}: choose one of input, docstrings, short")
    from pyspark.sql import functions as F

    from jobs.input.sources import explode_variants, read_input
    from jobs.spark.session import open_session

    frame = explode_variants(read_input(open_session(settings.spark), settings), settings)
    columns = [F.col(f"`{name}`") for name in settings.text_columns()]
    template = settings.is_templated()
    taken = frame.select((F.struct(*columns) if template else columns[0].cast("string")).alias("t")).limit(rows)
    window = taken.toArrow().column("t").combine_chunks()
    found = read_texts(window, make_asker(settings.spec())).texts.drop_null().to_pylist()
    if not found:
        raise InputError("the input holds no text to score")
    return found
