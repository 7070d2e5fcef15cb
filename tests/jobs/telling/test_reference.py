"""The reference of all settings is that of the settings."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.telling.reference import make_page, make_schema
from tests.conftest import ROOT
from udfs.tasks.registry import KINDS

CONF = ROOT / "conf"
_ELSEWHERE = {"json_schema": "schema", "variant_name": "variants"}  # told under another key


def test_page_and_schema_are_current() -> None:
    stale = "run `python -m jobs.telling.reference`"
    assert (CONF / "README.md").read_text(encoding="utf-8") == make_page(), stale
    assert json.loads((CONF / "job.schema.json").read_text(encoding="utf-8")) == make_schema(), stale


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_an_editor_finds_no_mistake_in_the_jobs_that_come_along(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), make_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": "kitchen"},
        {"lables": ["kitchen"]},
        {"task": "zero-shot"},
        {"overflow": "cut"},
        {"max_tokens": 0},
        {"max_new_tokens": "long"},
        {"target_lang": False},
        {"messages": [{"role": "user"}]},
    ],
)
def test_an_editor_marks_a_mistake(wrong: dict[str, Any]) -> None:
    job = yaml.safe_load((CONF / "catalog_tagging.yaml").read_text())
    job["score"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, make_schema())


def test_every_option_of_every_task_has_its_line() -> None:
    page = make_page()
    for kind in KINDS.values():
        for option in fields(kind.options):
            assert f"| `score.{_ELSEWHERE.get(option.name, option.name)}` |" in page
