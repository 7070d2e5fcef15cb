"""Jobs over pairs of texts: their settings, what is warned of before Spark starts, and a whole job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.errors import InputError, SettingsError
from jobs.input.sources import check_columns
from jobs.job_file import load_settings
from jobs.preflight import check_model, tell_ignored_settings
from jobs.run import retry, score
from jobs.settings import Settings
from jobs.telling.dry_run import show_plan
from tests.cross_encoders import make_cross_encoder
from tests.models import write_json
from udfs.errors import ModelError

WriteJob = Callable[..., Path]
RESULTS = [
    {"id": 1, "first query": "red tea", "title": "a kettle", "passage": "the kettle is red"},
    {"id": 2, "first query": "red tea", "title": "soil", "passage": "not about tea"},
    {"id": 3, "first query": "red tea", "title": "a kettle", "passage": "the kettle is red"},
    {"id": 4, "first query": None, "title": "a kettle", "passage": "the kettle is red"},
    {"id": 5, "first query": "red tea", "title": None, "passage": " "},
    {"id": 6, "first query": "red tea", "title": "a dog", "passage": "the dog is in the garden. " * 20},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_cross_encoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def write_settings(write_job: WriteJob, tmp_path: Path, model: str) -> Callable[..., Settings]:
    table = tmp_path / "results.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in RESULTS))

    def write(score: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Settings:
        asked = {"task": "text-classification", "model": model, "precision": "float32"}
        asked |= {"text": "first query", "text_pair": "{{ title }}. {{ passage }}"}
        source = {"path": str(table), "key": ["id"]}
        return load_settings(write_job(input=source, score={**asked, **(score or {})}, **sections))

    return write


def test_both_texts_say_which_columns_are_read(write_settings: Callable[..., Settings]) -> None:
    settings = write_settings()
    assert settings.text_columns() == settings.input_columns() == ("first query", "passage", "title")
    assert settings.columns_by_setting() == {"text": ("first query",), "text_pair": ("passage", "title")}
    assert settings.is_templated()
    with pytest.raises(InputError, match=r"score\.text_pair names title, but the input's columns are"):
        check_columns(["first query", "passage", "id"], settings)
    with pytest.raises(InputError, match=r"score\.text names first query, but"):
        check_columns(["passage", "title", "id"], settings)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"task": "feature-extraction"}, "text_pair, truncation and activation belong to text-classification, not to"),
        ({"text": None}, "text-classification takes text, not none"),
        ({"text_pair": "{{ 'x' }}"}, "reads no column"),
        ({"text_pair": "{{ x"}, "does not parse"),
        ({"text_pair": None, "truncation": "only_first"}, "it needs a text_pair"),
        ({"truncation": "only_third"}, "longest_first"),
    ],
)
def test_what_does_not_fit_to_pairs_is_a_mistake(
    write_settings: Callable[..., Settings], asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        write_settings(asked)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ title }} [SEP] {{ passage }}",
        "{{ title }}[SEP]{{ passage }}",
        "{{ title ~ ' [SEP] ' ~ passage }}",
        "{{ [title, passage] | join('[SEP]') }}",
        "{% set between = '[SEP]' %}{{ title }}{{ between }}{{ passage }}",
    ],
)
def test_two_texts_joined_by_the_separator_are_warned_of(write_settings: Callable[..., Settings], text: str) -> None:
    (told,) = tell_ignored_settings(check_model(write_settings({"text": text, "text_pair": None})))
    assert told.startswith("score.text has '[SEP]' in it")
    assert told.endswith("name the second as score.text_pair")


@pytest.mark.parametrize(
    ("tokenizer", "sign"),
    [
        ({"sep_token": "</s>"}, "</s>"),
        ({"sep_token": {"content": "</s>", "special": True}}, "</s>"),
        ({"sep_token": "</s>"}, "[SEP]"),
        ({"sep_token": None}, "[SEP]"),
    ],
)
def test_any_model_s_separator_is_warned_of(
    write_settings: Callable[..., Settings], tmp_path: Path, tokenizer: dict[str, Any], sign: str
) -> None:
    path = make_cross_encoder(tmp_path / "other", kind="Roberta", join="two separators", tokenizer=tokenizer)
    asked = {"model": path, "text": f"{{{{ title }}}}{sign}{{{{ passage }}}}", "text_pair": None}
    (told,) = tell_ignored_settings(check_model(write_settings(asked)))
    assert told.startswith(f"score.text has {sign!r} in it")


def _join_by(path: Path, processor: dict[str, Any]) -> None:
    held = json.loads((path / "tokenizer.json").read_text())
    number = held["model"]["vocab"]["[SEP]"]
    held["model"]["vocab"] = {("</s>" if n == number else token): n for token, n in held["model"]["vocab"].items()}
    write_json(path / "tokenizer.json", {**held, "post_processor": processor})


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["[CLS]", 2]}
        | {"trim_offsets": True, "add_prefix_space": False},
        {"type": "BertProcessing", "sep": ["</s>", 3], "cls": ["[CLS]", 2]},
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [3], "tokens": ["</s>"]}},
        },
    ],
    ids=lambda processor: processor["type"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_separator_that_the_tokenizer_alone_names_is_warned_of(
    write_settings: Callable[..., Settings], tmp_path: Path, processor: dict[str, Any], nested: bool
) -> None:
    path = Path(
        make_cross_encoder(tmp_path / "other", kind="Roberta", join="two separators", tokenizer={"sep_token": None})
    )
    _join_by(path, {"type": "Sequence", "processors": [processor]} if nested else processor)
    asked = {"model": str(path), "text": "{{ title }}</s></s>{{ passage }}", "text_pair": None}
    (line,) = tell_ignored_settings(check_model(write_settings(asked)))
    assert line.startswith("score.text has '</s>' in it")


@pytest.mark.parametrize(
    "asked",
    [{}, {"text": "{{ title }}. {{ passage }}", "text_pair": None}, {"text": "title", "text_pair": None}],
)
def test_texts_that_are_not_joined_so_are_not_warned_of(
    write_settings: Callable[..., Settings], asked: dict[str, Any]
) -> None:
    assert tell_ignored_settings(check_model(write_settings(asked))) == []


def test_a_tokenizer_that_puts_nothing_between_two_texts_is_warned_of(
    write_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    path = make_cross_encoder(tmp_path / "decoder", kind="Mistral", join="nothing", num_key_value_heads=4)
    (told,) = tell_ignored_settings(check_model(write_settings({"model": path})))
    assert "puts nothing between score.text and score.text_pair" in told


def test_no_room_for_two_texts_is_told_before_spark_starts(write_settings: Callable[..., Settings]) -> None:
    with pytest.raises(ModelError, match="leaves no room for two texts"):
        check_model(write_settings({"max_tokens": 4}))


@pytest.mark.long
def test_a_job_over_pairs_is_shown_scored_and_retried(
    spark: Any, write_settings: Callable[..., Settings], model: str, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    console = Console(record=True, width=200)
    settings = write_settings(output={"path": str(tmp_path / "out"), "columns": ["id"]})
    show_plan(settings, console)
    shown = console.export_text()
    assert "text_pair" in shown
    assert "red tea" in shown
    assert "a kettle. the kettle is red" in shown

    report = score(settings, console=console)
    assert (report.rows, report.succeeded, report.scored_rows) == (6, 4, 3)
    rows = {row["id"]: row for row in spark.read.parquet(settings.output.path).collect()}
    assert {i: row["prediction"]["error"]["code"] for i, row in rows.items() if row["outcome"] == "failed"} == {
        4: "empty_input",
        5: "empty_input",
    }
    good = [row for row in RESULTS if row["id"] in (1, 2, 3, 6)]
    pairs = [(row["first query"], f"{row['title']}. {row['passage']}") for row in good]
    expected = CrossEncoder(model, device="cpu").predict(pairs)
    assert [rows[row["id"]]["prediction"]["score"] for row in good] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [row["id"] for row in good if rows[row["id"]]["prediction"]["truncated"]] == [6]

    mended = [{**row, "first query": "red tea"} if row["id"] == 4 else row for row in RESULTS]
    Path(str(settings.input.path)).write_text("".join(json.dumps(row) + "\n" for row in mended))
    again = retry(settings, console=console)
    assert (again.rows, again.succeeded) == (2, 1)
