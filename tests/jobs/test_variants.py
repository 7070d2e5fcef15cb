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


@pytest.mark.parametrize("columns", [["id"], None])
def test_a_variant_with_the_name_of_an_answer_s_column_is_told(columns: list[str] | None) -> None:
    score = {**JOB["score"], "prompt": "{{ title }} in {{ prediction }}", "variants": {"prediction": ["de", "fr"]}}
    job = {**JOB, "score": score, "output": {"path": "out", "columns": columns}}
    with pytest.raises(InputError, match="the output adds a column 'prediction'"):
        check_columns(["id", "title"], Settings.model_validate(job))


def test_a_column_that_is_kept_twice_is_told_but_where_case_tells_columns_apart() -> None:
    settings = Settings.model_validate({**JOB, "output": {"path": "out", "columns": ["id", "ID"]}})
    with pytest.raises(InputError, match=r"output\.columns names id twice"):
        check_columns(["id", "title"], settings)
    check_columns(["id", "ID", "title"], settings, tells_case=True)


def test_a_column_of_the_prompt_that_is_not_there_is_told_by_its_setting() -> None:
    with pytest.raises(InputError, match=r"score\.prompt names title"):
        check_columns(["id"], Settings.model_validate(JOB))
