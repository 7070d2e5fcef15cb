"""Documents that are longer than a model reads: what is written about their chunks becomes one answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import encode_text, make_spec, make_writing_task, score_rows
from tests.writers import make_decoder, make_encoder_decoder, make_translator
from udfs.errors import SpecError
from udfs.spec import ScoreSpec
from udfs.tasks import registry
from udfs.wire.written import LENGTH, Written

DOCUMENT = "The first part is long.\n\nThe second part is longer. And so on.\n\nThe third."


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder_decoder(tmp_path_factory.mktemp("t5"))


def _translate(t5: str, **options: Any) -> ScoreSpec:
    return make_spec(t5, task="translation", source_lang="en", target_lang="de", overflow="chunk", **options)


def _document(prompt: str) -> str:
    return prompt.split(": ", 1)[1]


def test_a_translation_is_joined_as_its_document_was_parted(t5: str) -> None:
    rows = score_rows([DOCUMENT, "Short."], _translate(t5, max_tokens=60), lambda p: f" {_document(p).upper()} ")
    assert [row["text"] for row in rows] == [DOCUMENT.upper(), " SHORT. ".removeprefix(" ")]
    assert [row["truncated"] for row in rows] == [True, False]
    assert rows[0]["usage"]["output_tokens"] > len(DOCUMENT)
    assert [row["finish_reason"] for row in rows] == ["stop", "stop"]


def test_each_chunk_is_asked_for_and_no_prompt_is_too_long(t5: str) -> None:
    task = make_writing_task(_translate(t5, max_tokens=60))
    made = task.tokenize([DOCUMENT, "Short.", DOCUMENT])
    shown = task.show(made.items)
    assert all(prompt.startswith("translate English to German: ") for prompt in shown)
    assert made.items.lengths.max() <= 60
    assert made.units.tolist() == [0, 3, 4, 7]
    assert [_document(p) for p in shown[:3]] == [
        "The first part is long.",
        "The second part is longer.",
        "And so on.\n\nThe third.",
    ]


def test_each_of_several_languages_has_its_own_chunks(t5: str) -> None:
    spec = make_spec(
        t5, task="translation", source_lang="en", target_lang=("de", "fr"), overflow="chunk", max_tokens=60
    )
    rows = score_rows([DOCUMENT, "Short."], spec, lambda p: _document(p).upper() if "German" in p else _document(p))
    assert rows[0]["texts"] == {"de": DOCUMENT.upper(), "fr": DOCUMENT}
    assert rows[1]["texts"] == {"de": "SHORT.", "fr": "Short."}
    assert [row["truncated"] for row in rows] == [True, False]


def test_an_answer_that_is_cut_in_one_chunk_is_cut(t5: str) -> None:
    spec = _translate(t5, max_tokens=60)
    task = make_writing_task(spec)

    def write(prompt: str) -> Any:
        text = _document(prompt)
        return Written(encode_text(task, text), LENGTH, 0) if "second" in text else text

    (row,) = score_rows([DOCUMENT], spec, write)
    assert (row["text"], row["finish_reason"]) == (DOCUMENT, "length")


def test_a_document_fails_if_one_of_its_chunks_does(t5: str) -> None:
    rows = score_rows(
        [DOCUMENT, "Fine."], _translate(t5, max_tokens=60), lambda p: None if "second" in p else _document(p)
    )
    assert rows[0]["error"]["code"] == "expired"
    assert (rows[0]["text"], rows[1]["text"]) == (None, "Fine.")


def test_no_room_for_a_document_is_told_before_there_is_one(t5: str) -> None:
    with pytest.raises(SpecError, match="no room for a chunk"):
        make_writing_task(_translate(t5, max_tokens=29)).tokenize([])


def test_a_translator_whose_tokenizer_is_slow_reads_chunks_too(tmp_path: Path) -> None:
    model = make_translator(tmp_path, "marian")
    spec = make_spec(model, task="translation", target_lang="de", overflow="chunk", max_tokens=12)
    task = make_writing_task(spec)
    made = task.tokenize(["the red kettle is about tea"])
    assert len(made.items) > 1
    assert made.items.lengths.max() <= 12
    assert all(shown.startswith(">>de<<") for shown in task.show(made.items))


@pytest.fixture(scope="module", params=["t5", "chat"])
def summarizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScoreSpec:
    path = tmp_path_factory.mktemp("summarizer")
    if request.param == "t5":
        return make_spec(make_encoder_decoder(path), task="summarization", overflow="chunk", max_tokens=60)
    return make_spec(make_decoder(path), task="summarization", overflow="chunk", max_tokens=160)


def test_summaries_are_summarized_until_one_is_left(summarizer: ScoreSpec) -> None:
    asked: list[str] = []

    def write(prompt: str) -> str:
        document = _read(prompt)
        asked.append(document)
        return f"{document[:2]}-{document[-3:]}"

    long = "\n\n".join(f"{n:02} is a part of its own, end{n:02}." for n in range(40))
    rows = score_rows([long, "short one", None], summarizer, write)
    rounds = [document for document in asked if "\n\n" in document and "-" in document]
    assert rounds, "summaries were joined and summarized"
    assert rows[0]["text"].startswith("00-")
    assert rows[0]["error"] is None
    assert rows[1]["text"] == "sh-one"
    assert rows[2]["error"]["code"] == "empty_input"
    tokens = sum(6 for document in asked if document != "short one")
    assert rows[0]["usage"]["output_tokens"] == tokens, "of all rounds"


def test_summaries_that_do_not_get_shorter_come_to_an_end(summarizer: ScoreSpec) -> None:
    rows = score_rows(["A part of it. " * 40], summarizer, _read)
    assert rows[0]["error"] is None
    assert rows[0]["text"]


def test_a_summary_does_not_depend_on_the_texts_beside_it(summarizer: ScoreSpec) -> None:
    def write(prompt: str) -> str:
        document = _read(prompt)
        return document if "stuck" in document else document[:6]

    stuck = "It is stuck. " * 12
    long = "\n\n".join(f"{n:02} is a part of its own, end{n:02}." for n in range(40))
    alone = score_rows([long], summarizer, write)[0]["text"]
    assert score_rows([stuck, long], summarizer, write)[1]["text"] == alone
    one_by_one = score_rows([stuck, long], replace(summarizer, window_rows=1), write)
    assert one_by_one[1]["text"] == alone


def test_a_summary_fails_if_a_later_round_does(summarizer: ScoreSpec) -> None:
    answers = {"part": "again", "again": None, "Fine": "ok"}
    rows = score_rows(
        ["A part of it. " * 40, "Fine."],
        summarizer,
        lambda p: next(a for word, a in answers.items() if word in _read(p)),
    )
    assert [row["error"] and row["error"]["code"] for row in rows] == ["expired", None]
    assert rows[0]["usage"]["input_tokens"] > 0


def test_chunks_that_say_nothing_have_an_empty_summary(summarizer: ScoreSpec) -> None:
    assert score_rows(["A part of it. " * 40], summarizer, lambda _: "")[0]["text"] == ""


def _read(prompt: str) -> str:
    """The document of a prompt."""
    if prompt.startswith("summarize: "):
        return prompt.removeprefix("summarize: ")
    return prompt.split("alone.\n\n", 1)[1].split("</user>", 1)[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "text-generation", "overflow": "chunk"}, "text-generation does not do"),
        ({"task": "translation", "overflow": "chunk", "chunk_overlap": 8}, "would be there twice"),
        ({"task": "token-classification", "overflow": "chunk", "chunk_overlap": 8}, "would be there twice"),
        ({"task": "summarization", "chunk_overlap": 8}, "belongs to overflow 'chunk'"),
        (
            {"task": "feature-extraction", "overflow": "chunk", "chunk_pooling": "max"},
            "chunk_pooling and labels belong to",
        ),
        ({"task": "feature-extraction", "overflow": "chunk", "chunk_overlap": -1}, "must be 0 or more"),
    ],
)
def test_options_of_chunks_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        registry.make_spec(model="m", **options)


def test_an_overlap_beyond_half_a_chunk_is_told_with_the_room_that_there_is(t5: str) -> None:
    spec = make_spec(t5, task="summarization", overflow="chunk", max_tokens=60, chunk_overlap=40)
    with pytest.raises(SpecError, match="more than half of a chunk, which has room for 49 tokens"):
        make_writing_task(spec).tokenize([])
