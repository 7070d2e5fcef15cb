"""Whose output it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.job_file import load_settings
from jobs.output.fingerprint import describe, differences

WriteJob = Callable[..., Path]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (["id"], ["lang"], ["input.key"]),  # rows would take the place of others
        (["id"], ["id", "lang"], ["input.key"]),
        (["id", "lang"], ["Lang", "ID"], []),
    ],
)
def test_a_table_that_is_merged_goes_by_one_key(
    write_job: WriteJob, before: list[str], now: list[str], told: list[str]
) -> None:
    def about(key: list[str], mode: str) -> dict[str, Any]:
        output = {"format": "delta", "mode": mode, "columns": ["id", "lang"]}
        return describe(load_settings(write_job(input={"key": key}, output=output)), "00")

    assert differences(about(before, "merge"), about(now, "merge")) == told
    assert differences(about(before, "append"), about(now, "append")) == []
    older = {name: value for name, value in about(before, "merge").items() if name != "input.key"}
    assert differences(older, about(now, "merge")) == []
