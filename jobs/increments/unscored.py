"""What of an input no committed increment holds: files with their sizes, or the rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.input.changes import takes_all, tell_skipped
from jobs.input.files import InputFiles, list_input, tell_back, tell_replaced, tell_unread
from jobs.input.reading import count_rows
from jobs.input.sources import Kind
from jobs.output.committed import Increment
from jobs.output.directory import Output
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_FILTERS = {"pathglobfilter", "modifiedbefore", "modifiedafter"}


class Unscored:
    """What is left of an input, now and as more of it is committed.

    Args:
        settings: The job.
        output: Its output.
        kind: How the input is read.
        frame: The whole input.
    """

    def __init__(self, settings: Settings, output: Output, kind: Kind, frame: DataFrame) -> None:
        self._settings, self._output, self._kind, self._frame = settings, output, kind, frame
        self._files = list_input(str(settings.input.path), frame.inputFiles()) if kind == "files" else None
        self._rows: int | None = None

    @property
    def is_of_files(self) -> bool:
        return self._files is not None

    @property
    def input_files(self) -> InputFiles | None:
        """What lay at the path of an input of files as the run began."""
        return self._files

    def files(self) -> dict[str, int]:
        """Sizes of the files in no committed increment."""
        if self._files is None:
            return {}
        checkpoint = self._output.checkpoint()
        over = checkpoint.offset_of(max((i.number for i in self._committed()), default=-1))
        return self._files.left(file for file in checkpoint.seen() if file.offset <= over)

    def count(self) -> None:
        """Count the rows of a table, where its log tells of new ones and all of them are to be scored.

        Raises:
            InputError: They cannot be read.
        """
        if (
            self._kind in ("table", "iceberg")
            and takes_all(self._settings.input.options)
            and (self._settings.input.changes == "stop")
        ):
            variants = len(exploded[1]) if (exploded := self._settings.exploded()) else 1
            self._rows = variants * count_rows(self._frame)

    def rows(self) -> int | None:
        """Rows in no committed increment, each once a variant; None where they are not counted."""
        if self._rows is None:
            return None
        return max(0, self._rows - sum(increment.counts.rows for increment in self._committed()))

    def as_counts(self) -> dict[str, int]:
        """What is left, by `files` and `bytes`, or by `rows`."""
        if rows := self.rows():
            return {"rows": rows}
        sizes = self.files()
        return {"files": len(sizes), "bytes": sum(sizes.values())} if sizes else {}

    def warnings(self) -> list[str]:
        """Warnings of what is left out: changes of a table, and files that are not read, or not again."""
        source = self._settings.input
        skipped = tell_skipped(source.options)
        if self._files is None:
            return skipped
        filtered = any(key.lower() in _FILTERS for key in source.options)
        known = self._output.increments()
        gone = [uri for increment in known for uri in increment.gone_files]
        looked = sorted((i.input_offset, i.began_ms) for i in known if i.input_offset is not None)
        seen, read = self._output.checkpoint().seen(), self._output.read_files().values()
        return [
            *skipped,
            *tell_unread(self._files, path=str(source.path), filtered=filtered),
            *tell_replaced(self._files, seen, read, looked),
            *tell_back(self._files, gone),
        ]

    def _committed(self) -> list[Increment]:
        return [increment for increment in self._output.increments() if not increment.is_retry]
