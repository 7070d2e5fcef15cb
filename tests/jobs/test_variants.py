from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InputError
from jobs.input.sources import check_columns, select_needed
from jobs.settings import Settings

JOB: dict[str, Any] = {
    "input": {"path": "in", "key": ["id"]},
    "output": {"path": "out", "columns": ["id"]},
    "score": {
        "task": "text-generation",
        "model": "m",
        "prompt": "{{ title }} in {{ language }}",
        "variants": {"language": ["de", "fr"]},
        "variants_as": "rows",
    },
}


def test_each_row_is_there_once_a_variant(spark: Any) -> None:
    frame = spark.createDataFrame([(1, "tea", "x"), (2, "soil", "y")], "id int, title string, other string")
    found = select_needed(frame, Settings.model_validate(JOB))
    assert found.columns == ["id", "title", "language"]
    assert sorted(map(tuple, found.collect())) == [
        *((1, "tea", "de"), (1, "tea", "fr"), (2, "soil", "de"), (2, "soil", "fr"))
    ]


def test_a_column_with_the_variant_s_name_is_told() -> None:
    with pytest.raises(InputError, match="adds a column 'language', but the input has one"):
        check_columns(["id", "title", "Language"], Settings.model_validate(JOB))


def test_a_column_of_the_prompt_that_is_not_there_is_told_by_its_setting() -> None:
    with pytest.raises(InputError, match=r"score\.prompt names title"):
        check_columns(["id"], Settings.model_validate(JOB))
