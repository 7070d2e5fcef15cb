"""However a path is spelt: the files that the stream plans are read whole, with the partition columns of a batch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.folder import Folder
from jobs.input.checkpoint import Checkpoint
from jobs.input.sources import check_types, read_files, read_input, read_stream
from jobs.job_file import load_settings

WriteJob = Callable[..., Path]
_NAMES = ("a.jsonl", "a[1] {é}%20.jsonl")  # the second one, taken for a pattern, fits nothing


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in hive's layout; beside each file is one whose name is no pattern."""
    root = tmp_path_factory.mktemp("table")
    for day in ("2026-01-01", "2026-01-02"):
        for name in _NAMES:
            path = root / f"h/day={day}/lang=a%20b" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{{"id": {len(name)}, "text": "{day}"}}\n')
    return root


@pytest.mark.parametrize(
    ("path", "base", "rows", "partitions"),
    [
        ("{0}/h/", None, 4, {"day": "date", "lang": "string"}),
        ("{1}/h/../h", None, 4, {"day": "date", "lang": "string"}),
        ("file://{0}/h", None, 4, {"day": "date", "lang": "string"}),
        ("{0}/h/day=2026-01-01", "{0}/h", 2, {"day": "date", "lang": "string"}),
        ("{0}/h/day=*/lang=*", "{0}/h", 4, {"day": "date", "lang": "string"}),
        ("{0}/h/day=*/*/a.jsonl", None, 2, {}),
        ("{0}/h/day=2026-01-01/lang=a%20b/a.jsonl", None, 1, {}),
    ],
)
def test_planned_files_are_read_as_the_whole_input_is(
    spark: Any, write_job: WriteJob, table: Path, tmp_path: Path, path: str, base: str | None, rows: int,
    partitions: dict[str, str],
) -> None:  # fmt: skip
    path = path.format(table, os.path.relpath(table))
    options = {"basePath": base.format(table)} if base else {}
    settings = load_settings(write_job(input={"path": path, "options": options}))
    frame = read_input(spark, settings)
    assert {name: kind for name, kind in frame.dtypes[2:] if name != "_corrupt_record"} == partitions

    stream = read_stream(spark, settings, frame.schema, 1 << 30)
    query = stream.writeStream.trigger(availableNow=True).option("checkpointLocation", str(tmp_path / "plan"))
    query.foreachBatch(lambda *_: None).start().awaitTermination()
    planned = [file.uri for file in Checkpoint(Folder(str(tmp_path)), "plan").files_of(0)]
    read = read_files(spark, settings, frame.schema, planned).select(*frame.columns)
    assert read.dtypes == frame.dtypes
    assert Counter(read.collect()) == Counter(frame.collect())
    assert read.count() == rows


@pytest.mark.parametrize(("key", "is_told"), [("attrs", True), ("Tags", False), ("id", False)])
def test_a_key_that_tells_no_rows_apart_is_told_before_they_are_merged(
    spark: Any, write_job: WriteJob, key: str, is_told: bool
) -> None:
    frame = spark.createDataFrame([], "id int, text string, attrs map<string, int>, tags array<string>")

    def check(**output: str) -> None:
        check_types(frame, load_settings(write_job(input={"key": [key]}, output=output)))

    with pytest.raises(InputError, match="attrs, which is of type map") if is_told else nullcontext():
        check(format="delta", mode="merge")
    check(format="delta", mode="append")
