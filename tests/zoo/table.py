"""The zoo's table: what became of each architecture, with the version of transformers that it was seen with."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

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


def write_table(rows: Mapping[Key, Found]) -> None:
    """All rows, in order."""
    from transformers import __version__

    with TABLE.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "architecture", "result", "how", "transformers"])
        out.writerows([*key, found.result, found.how, __version__] for key, found in sorted(rows.items()))
