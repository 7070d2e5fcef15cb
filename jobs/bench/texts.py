"""The texts that a benchmark scores."""

from __future__ import annotations

from jobs.bench.corpus import docstrings
from jobs.errors import InputError, UserError
from jobs.settings import Settings


def take_texts(settings: Settings, texts: str, rows: int) -> list[str]:
    """The texts that a benchmark scores: the job's own, or docstrings of the installed packages.

    Raises:
        UserError: There are none.
    """
    if texts in ("docstrings", "short"):
        return docstrings(rows, first_line=texts == "short")
    if texts != "input":
        raise UserError(f"--texts {texts}: choose one of input, docstrings, short")
    from jobs.increments.plan import text_of
    from jobs.input.sources import explode_variants, read_input
    from jobs.spark.session import open_session
    from udfs.factory import make_reader

    frame = explode_variants(read_input(open_session(settings.spark), settings), settings)
    read = frame.limit(rows).select(make_reader(settings.spec())(text_of(frame, settings)).alias("read"))
    found = [text for text, _, _ in read.select("read.*").collect() if text is not None]
    if not found:
        raise InputError("the input holds no text to score")
    return found
