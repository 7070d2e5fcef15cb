"""Options of a row: what a row asks for itself is what a job would be asked for, whatever is written beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.random_writers import save_writer
from udfs.errors import SpecError
from udfs.local import LocalEngine
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec
from udfs.tasks.text_generation import make_asker
from udfs.worker.scoring import score_with

NEW = 10
WAYS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"temperature": 1.5, "seed": 5},
    {"temperature": 0.8, "top_p": 0.5},
    {"temperature": 2.0, "top_k": 3, "seed": 2},
    {"temperature": 1.0, "n": 3},
    {"stop": ["e", "a"]},
    {"schema": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}},
    {"choices": ["tea", "coffee"]},
    {"response_format": "json_object", "max_new_tokens": 60},
    {"logprobs": True, "top_logprobs": 3},
    {"presence_penalty": 2.0, "frequency_penalty": 1.5},
    {"logit_bias": {"5": 100}},
    {"min_tokens": 8, "stop": ["e"]},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("bart"), "Bart")


def _spec(model: str, **options: Any) -> ScoreSpec[Any]:
    told = {"precision": "float32", "template": "{{ text }}", "max_new_tokens": NEW, **options}
    return make_spec(task="text-generation", model=model, **told)


def _rows(spec: ScoreSpec[Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    window = pa.StructArray.from_arrays(
        [pa.array([row[name] for row in rows], pa.string()) for name in ("text", "options")], ["text", "options"]
    )
    with LocalEngine(spec) as engine:
        return [row for part in score_with(engine, [window], spec) for row in part.to_pylist()]


def _ask(text: str, options: Any) -> dict[str, Any]:
    return {"text": text, "options": json.dumps(options)}


TOLD = ("text", "finish_reason", "candidates", "logprobs", "error")


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_row_with_options_has_the_answer_that_a_job_with_them_gives_it(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    rows = [_ask(f"text {number % 2}", way) for number, way in enumerate(WAYS)]
    together = _rows(_spec(model, options_from="options"), rows)
    for row, way, found in zip(rows, WAYS, together, strict=True):
        given = {"json_schema" if name == "schema" else name: value for name, value in way.items()}
        form = given.pop("json_schema", None)
        job = {**given, **({"json_schema": json.dumps(form)} if form else {})}
        (alone,) = _rows(_spec(model, **job), [row])
        for name in TOLD:
            if name in alone:
                assert _near(found[name], alone[name]), (way, name)


def _near(found: Any, wanted: Any) -> bool:
    """Equal, but for the rounding of logarithms."""
    match wanted:
        case float():
            return found == pytest.approx(wanted, abs=1e-3)
        case dict():
            return found.keys() == wanted.keys() and all(_near(found[key], each) for key, each in wanted.items())
        case list():
            return len(found) == len(wanted) and all(map(_near, found, wanted))
    return found == wanted


def test_several_answers_are_drawn_each_by_itself_and_their_prompt_counts_once(llama: str) -> None:
    (one,) = _rows(_spec(llama, temperature=2.0), [_ask("a text", {})])
    (row,) = _rows(_spec(llama, temperature=2.0, n=4), [_ask("a text", {})])
    texts = [each["text"] for each in row["candidates"]]
    assert len(set(texts)) > 1
    assert (texts[0], row["text"]) == (one["text"], one["text"])
    assert row["usage"]["input_tokens"] == one["usage"]["input_tokens"]
    assert row["usage"]["output_tokens"] == sum(each["output_tokens"] for each in row["candidates"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": "hot"}, "temperature is no number"),
        ({"temperature": -1}, "temperature is not 0 or more"),
        ({"top_p": 0}, "top_p is not from 0 to 1"),
        ({"n": 1.5}, "n is no whole number"),
        ({"n": True}, "n is no whole number"),
        ({"stop": [""]}, "stop is no string"),
        ({"typo": 1}, "there is no option 'typo'"),
        ({"schema": {"type": "no such"}}, "schema is no JSON schema"),
        ({"choices": ["x" * 20]}, "max_new_tokens is 10"),
        ({"logit_bias": {"99999": 1}}, "logit_bias names a token"),
        ({"top_logprobs": 2}, "top_logprobs takes logprobs"),
        ([1], "no struct, no map and no JSON object"),
        ({"engine": "vllm"}, "there is no option 'engine'"),
    ],
)
def test_options_that_are_none_fail_their_row_alone(llama: str, options: Any, told: str) -> None:
    good, bad = _rows(_spec(llama, options_from="options"), [_ask("a", {"max_new_tokens": 2}), _ask("a", options)])
    assert good["error"] is None
    assert bad["error"]["code"] == "bad_options"
    assert told in bad["error"]["message"]


def test_options_in_a_map_may_be_numbers_as_text(llama: str) -> None:
    maps: list[Any] = [
        [("max_new_tokens", "3"), ("temperature", "0.5"), ("logprobs", "true"), ("stop", "7")],
        [("max_new_tokens", "few")],
        [("logit_bias", '{"70": 100}'), ("max_new_tokens", "2")],
    ]
    columns = [pa.array(["a"] * 3), pa.array(maps, pa.map_(pa.string(), pa.string()))]
    window = pa.StructArray.from_arrays(columns, ["text", "options"])
    spec = _spec(llama, options_from="options")
    with LocalEngine(spec) as engine:
        first, second, third = (row for part in score_with(engine, [window], spec) for row in part.to_pylist())
    assert (first["error"], len(first["logprobs"])) == (None, 3)
    assert "max_new_tokens is no whole number" in second["error"]["message"]
    assert (third["error"], third["usage"]["output_tokens"]) == (None, 2)


_HALVES = ('{"stop": ["\\ud800"]}', '{"schema": {"enum": ["\\ud800"]}}')
_UNREADABLE = (*_HALVES, "[" * 5000, '{"temperature": NaN}', '{"top_k": 1e30}')


@pytest.mark.parametrize("options", _UNREADABLE)
def test_options_that_no_engine_can_read_fail_their_row_alone(llama: str, options: str) -> None:
    rows = _rows(_spec(llama, options_from="options"), [{"text": "a", "options": told} for told in (options, "{}")])
    assert [row["error"] and row["error"]["code"] for row in rows] == ["bad_options", None]


def test_an_answer_that_leaves_its_prompt_no_room_fails_its_row_alone(llama: str) -> None:
    rows = [_ask("a" * 50, {"max_new_tokens": 500}), _ask("a" * 50, {"max_new_tokens": 20})]
    spec = _spec(llama, options_from="options", overflow="fail")
    assert [row["error"] and row["error"]["code"] for row in _rows(spec, rows)] == ["input_too_long", None]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_logprobs": 2}, "top_logprobs takes logprobs"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0"),
        ({"n": 2, "variants": ("a",), "variant_name": "text"}, "n is for rows that are asked once"),
        ({"response_format": "json_object", "choices": ("a",)}, "says less than schema or choices"),
    ],
)
def test_options_of_a_job_that_do_not_fit_are_told_before_it_starts(llama: str, options: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        _spec(llama, **options)


def test_options_beside_a_text_need_a_struct_of_both(llama: str) -> None:
    with pytest.raises(SpecError, match="write the text as a template"):
        make_asker(_spec(llama, options_from="options", template=None))


def test_keys_are_written_in_the_order_of_a_rows_schema(llama: str) -> None:
    facts = {"why": {"enum": ["x"]}, "answer": {"enum": [1, 2]}}
    schema = {"type": "object", "properties": facts, "required": [*facts], "additionalProperties": False}
    told = _ask("a", {"schema": schema, "max_new_tokens": 60})
    (by_row,) = _rows(_spec(llama, options_from="options"), [told])
    (by_job,) = _rows(_spec(llama, json_schema=json.dumps(schema), max_new_tokens=60), [told])
    assert list(json.loads(by_row["text"])) == list(json.loads(by_job["text"])) == ["why", "answer"]


def test_identical_texts_with_other_options_are_written_apart(llama: str, tmp_path: Path) -> None:
    spec = _spec(llama, options_from="options")
    first, second, same = _rows(spec, [_ask("a", {"max_new_tokens": n}) for n in (2, 5, 2)])
    assert (first["usage"]["output_tokens"], second["usage"]["output_tokens"]) == (2, 5)
    assert (same["text"], same["usage"]["output_tokens"]) == (first["text"], 0)
