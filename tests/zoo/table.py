"""The zoo's table: what became of each architecture, with the version of transformers that it was seen with."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from tests.zoo.comparing import ZONES, Found, Zone

TABLE = Path(__file__).with_name("table.csv")
Key = tuple[str, str]  # task, model_type


def architectures() -> dict[Zone, list[str]]:
    """What the installed transformers maps to each task."""
    from transformers.models.auto import modeling_auto

    return {zone: sorted(getattr(modeling_auto, zone.mapping)) for zone in ZONES}


def read_table() -> dict[Key, Found]:
    """The rows by task and architecture."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="") as file:
        return {(r["task"], r["architecture"]): Found(r["result"], r["how"]) for r in csv.DictReader(file)}


def read_version() -> set[str]:
    """The versions of transformers that rows were seen with."""
    with TABLE.open(newline="") as file:
        return {row["transformers"] for row in csv.DictReader(file)}


def add_rows(rows: Mapping[Key, Found]) -> None:
    """Put rows into the table, in order; others may do so meanwhile."""
    with FileLock(Path(tempfile.gettempdir(), "gristmill-zoo.lock")):
        _write({**read_table(), **rows})


def _write(rows: Mapping[Key, Found]) -> None:
    from transformers import __version__

    beside = TABLE.with_suffix(".new")
    with beside.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "architecture", "result", "how", "transformers"])
        out.writerows([*key, found.result, found.how, __version__] for key, found in sorted(rows.items()))
    beside.replace(TABLE)
