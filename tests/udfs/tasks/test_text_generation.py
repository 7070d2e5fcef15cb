"""What the tasks that write ask a model, and what becomes of its answers; no model writes here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from tests.stand_in import encode_text, make_spec, make_writing_task, score_rows
from tests.writers import make_decoder, make_encoder_decoder
from udfs.errors import ModelError, SpecError
from udfs.model.files import open_model
from udfs.spec import ScoreSpec
from udfs.tasks.text_generation import TextGeneration, make_asker, question_columns
from udfs.text.questions import Question, ask
from udfs.text.templates import read_texts
from udfs.wire.written import BROKEN, LENGTH, Written


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder_decoder(tmp_path_factory.mktemp("t5"))


def _prompts(spec: ScoreSpec, row: dict[str, Any]) -> list[str]:
    """What the model reads for a row."""
    render, task = make_asker(spec), make_writing_task(spec)
    text = render(row)[0] if render else row["text"]
    return task.show(task.tokenize([text or ""]).items)


CHAT = (("system", "Be brief."), ("user", "{{ title }}: {{ text }}!"))


def test_a_chat_is_written_as_the_model_s_own_template_says(decoder: str) -> None:
    spec = make_spec(decoder, messages=CHAT)
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "News: rain ü <b>!"}]
    expected = AutoTokenizer.from_pretrained(decoder).apply_chat_template(
        told, add_generation_prompt=True, tokenize=False
    )
    assert _prompts(spec, {"title": "News", "text": "rain ü <b>"}) == [expected]


def test_a_prompt_is_rendered_and_sent_as_it_is(decoder: str) -> None:
    assert _prompts(make_spec(decoder, template="Say {{ text }}:"), {"text": "tea"}) == ["Say tea:"]
    assert _prompts(make_spec(decoder), {"text": "tea"}) == ["tea"]


@pytest.mark.parametrize("options", [{"messages": CHAT}, {"template": "{{ title }}: {{ text }}!"}])
def test_a_long_document_is_cut_and_what_stands_around_it_stays(decoder: str, options: dict[str, Any]) -> None:
    spec = make_spec(decoder, max_tokens=90, **options)
    task, text = make_writing_task(spec), make_asker(spec)({"title": "News", "text": "0123456789" * 20})[0]  # type: ignore[misc]
    made = task.tokenize([text])
    assert made.truncated.tolist() == [True]
    assert made.items.lengths.tolist() == [90]
    shown = task.show(made.items)[0]
    assert "News: 01234567" in shown
    assert shown.endswith("!</user><assistant>" if spec.options.messages else "!")


def test_characters_of_several_tokens_are_cut_whole(decoder: str) -> None:
    task = make_writing_task(make_spec(decoder, template="{{ text }}.", max_tokens=30))
    made = task.tokenize([make_asker(task._spec)({"text": "é👩" * 20})[0]])  # type: ignore[misc]
    assert "\ufffd" not in task.show(made.items)[0]
    assert made.items.lengths[0] <= 30


def test_a_long_document_fails_where_it_shall_and_where_the_instruction_alone_is_too_long(decoder: str) -> None:
    for options in ({"overflow": "fail", "max_tokens": 60}, {"max_tokens": 20}):
        rows = score_rows(
            [{"title": "a", "text": "b" * 90}], make_spec(decoder, messages=CHAT, **options), lambda _: "yes"
        )
        assert (rows[0]["error"]["code"], rows[0]["truncated"], rows[0]["text"]) == ("input_too_long", True, None)


def test_prompt_and_answer_share_the_model_s_room(decoder: str, t5: str) -> None:
    assert make_writing_task(make_spec(decoder)).max_tokens == 380
    assert make_writing_task(make_spec(t5)).max_tokens == 512
    for options in ({"max_new_tokens": 400}, {"max_tokens": 390}):
        with pytest.raises(ModelError, match="400 tokens, prompt and answer together"):
            make_writing_task(make_spec(decoder, **options))


def test_answers_come_back_to_their_rows_with_what_they_cost(decoder: str) -> None:
    answers = {"a": " first", "b": Written(np.array([], dtype=np.int32), LENGTH), "c": None}
    rows = score_rows(["a", None, "b", "c", "a"], make_spec(decoder), lambda prompt: answers[prompt])
    assert [row["text"] for row in rows] == ["first", None, "", None, "first"]
    assert [row["finish_reason"] for row in rows] == ["stop", None, "length", None, "stop"]
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "empty_input", None, "expired", None]
    usage = {"input_tokens": 1, "output_tokens": 6, "padded_tokens": 1, "cached_tokens": 2}
    assert rows[0]["usage"] == usage
    assert set(rows[4]["usage"].values()) == {0}


def test_an_answer_out_of_numbers_that_are_none_fails(decoder: str) -> None:
    broken = Written(np.array([5], dtype=np.int32), BROKEN)
    rows = score_rows(["a", "b"], make_spec(decoder), lambda prompt: broken if prompt == "a" else "fine")
    assert rows[0]["error"]["code"] == "not_finite"
    assert rows[1]["text"] == "fine"


def test_a_stop_string_and_what_follows_it_is_cut_off(decoder: str) -> None:
    answer = Written(encode_text(make_writing_task(make_spec(decoder)), "one\ntwo END three"), LENGTH)
    rows = score_rows(["a"], make_spec(decoder, stop=("END", "\n")), lambda _: answer)
    assert (rows[0]["text"], rows[0]["finish_reason"]) == ("one", "stop")


def test_each_variant_is_asked_once_and_answers_are_maps(decoder: str) -> None:
    spec = make_spec(decoder, template="{{ text }} in {{ language }}", variants=("de", "fr"), variant_name="language")
    rows = score_rows([{"text": "tea"}, {"text": " "}, {"text": "soil"}], spec, lambda prompt: prompt.upper())
    assert rows[0]["texts"] == {"de": "TEA IN DE", "fr": "TEA IN FR"}
    assert rows[0]["finish_reasons"] == {"de": "stop", "fr": "stop"}
    assert rows[0]["usage"]["input_tokens"] == 2 * len("tea in de")
    assert (rows[1]["texts"], rows[1]["error"]["code"]) == (None, "empty_input")
    assert rows[2]["texts"]["fr"] == "SOIL IN FR"


def test_a_row_is_as_good_as_its_worst_variant(decoder: str) -> None:
    spec = make_spec(decoder, template="{{ text }} {{ variant }}", variants=("de", "fr"), variant_name="variant")
    rows = score_rows([{"text": "a"}, {"text": "b"}], spec, lambda prompt: None if prompt == "a fr" else "yes")
    assert (rows[0]["texts"], rows[0]["error"]["code"]) == (None, "expired")
    assert rows[1]["texts"] == {"de": "yes", "fr": "yes"}


def test_a_variant_s_column_does_not_save_a_row_from_being_empty(decoder: str) -> None:
    spec = make_spec(decoder, template="{{ text }} in {{ language }}", variant_name="language")
    assert question_columns(spec) == ("language", "text")
    assert [row["error"] is None for row in score_rows(
        [{"text": None, "language": "de"}, {"text": "a", "language": "de"}], spec, lambda prompt: prompt
    )] == [False, True]  # fmt: skip


def test_an_answer_is_one_of_the_choices_or_none(decoder: str) -> None:
    rows = score_rows(
        ["a", "b", "c"], make_spec(decoder, choices=("good", "bad")), {"a": " good\n", "b": "goo", "c": "bad"}.get
    )
    assert [row["text"] for row in rows] == ["good", None, "bad"]
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "invalid_output", None]


def test_an_answer_that_matches_the_schema_becomes_columns(decoder: str) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    answers = {"a": '{"n": 3}', "b": '{"n": "3"}', "c": '{"n": 3'}
    rows = score_rows(["a", "b", "c"], make_spec(decoder, json_schema=schema), answers.get)
    assert [row["answer"] for row in rows] == [{"n": 3}, None, None]
    assert rows[0]["text"] == '{"n": 3}'
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "invalid_output", "invalid_output"]


def test_variants_have_answers_by_schema_too(decoder: str) -> None:
    spec = make_spec(
        decoder, template="{{ t }} {{ v }}", variants=("x", "y"), variant_name="v", json_schema='{"type": "boolean"}'
    )
    assert score_rows([{"t": "a"}], spec, lambda _: "true")[0]["answers"] == {"x": True, "y": True}


def test_a_decoder_is_asked_to_summarize_and_to_translate_in_a_chat(decoder: str) -> None:
    summary = _prompts(make_spec(decoder, task="summarization"), {"text": "tea"})
    assert summary[0].startswith("<s><user>Summarize the following text")
    assert summary[0].endswith("alone.\n\ntea</user><assistant>")
    german = _prompts(make_spec(decoder, task="translation", source_lang="en", target_lang="de"), {"text": "tea"})
    assert "from English to German." in german[0]
    assert (
        "text to Klingon." in _prompts(make_spec(decoder, task="translation", target_lang="Klingon"), {"text": "a"})[0]
    )


def test_t5_wants_a_prefix_and_bart_the_text_alone(t5: str, tmp_path: Path) -> None:
    assert _prompts(make_spec(t5, task="summarization"), {"text": "tea"}) == ["summarize: tea"]
    translation = make_spec(t5, task="translation", source_lang="en", target_lang="fr")
    assert _prompts(translation, {"text": "tea"}) == ["translate English to French: tea"]
    bart = make_encoder_decoder(tmp_path, "bart")
    assert _prompts(make_spec(bart, task="summarization"), {"text": "tea"}) == ["tea"]


def test_forced_tokens_follow_the_text_under_a_type_of_their_own(t5: str) -> None:
    class Forced(TextGeneration):
        def questions(self, text: str) -> list[Question]:
            return [ask(text, forced=(7, 8) if text == "ab" else (9,))]

    items = Forced(make_spec(t5), open_model(t5)).tokenize(["ab", "c"]).items
    assert items.ids[[2, 3, 5]].tolist() == [7, 8, 9]
    assert items.type_ids is not None
    assert items.type_ids.tolist() == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match=r"temperature is (inf|nan); it must be a finite number"):
        make_spec("m", prompt="{{ a }}", temperature=value)


def test_a_text_is_translated_into_each_of_several_languages(decoder: str) -> None:
    spec = make_spec(decoder, task="translation", target_lang=("de", "fr"))
    answer = {"German": "Tee", "French": "thé"}
    rows = score_rows(["tea", None], spec, lambda prompt: next(text for name, text in answer.items() if name in prompt))
    assert rows[0]["texts"] == {"de": "Tee", "fr": "thé"}
    assert rows[0]["finish_reasons"] == {"de": "stop", "fr": "stop"}
    assert (rows[1]["texts"], rows[1]["error"]["code"]) == (None, "empty_input")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "translation"}, "needs target_lang"),
        ({"task": "translation", "target_lang": "xx"}, "no language 'xx'; there are ar, bg"),
    ],
)
def test_a_language_that_is_missing_or_unknown_is_told_at_the_start(
    decoder: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        make_writing_task(make_spec(decoder, **options))


def test_a_model_that_cannot_write_or_chat_is_refused(tmp_path: Path) -> None:
    reader = make_decoder(tmp_path / "reader", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match="BertForMaskedLM, which cannot write"):
        make_writing_task(make_spec(reader))
    bare = make_decoder(tmp_path / "bare", chat=None)
    make_writing_task(make_spec(bare))
    for options in ({"messages": CHAT}, {"task": "summarization"}, {"task": "translation", "target_lang": "de"}):
        with pytest.raises(ModelError, match="has no chat template"):
            make_writing_task(make_spec(bare, **options))


def test_beams_of_a_decoder_are_refused(decoder: str, t5: str) -> None:
    make_writing_task(make_spec(t5, num_beams=2))
    with pytest.raises(ModelError, match="is a decoder, and num_beams is for encoder-decoders"):
        make_writing_task(make_spec(decoder, num_beams=2))


def test_a_chat_template_that_refuses_says_why(decoder: str) -> None:
    spec = make_spec(decoder, messages=(("assistant", "{{ text }}"),))
    with pytest.raises(ModelError, match="refuses messages of assistant: begin with the user"):
        _prompts(spec, {"text": "a"})


def test_a_chat_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    attack = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ModelError, match="refuses"):
        _prompts(make_spec(make_decoder(tmp_path, chat=attack), messages=CHAT), {"title": "a", "text": "b"})


def test_a_question_is_cut_inside_its_document() -> None:
    question = ask("abcdef", role="user", before="Read: ")
    assert question.cut(2).parts == (("user", "Read: ab"),)
    assert question.cut(2).document == "ab"


def test_an_answer_that_is_none_says_why(decoder: str) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    cut = Written(encode_text(make_writing_task(make_spec(decoder)), '{"n": 3'), LENGTH)
    answers = {"a": f'{{"n": {2**63}}}', "b": cut, "c": '{"n": "x"}', "d": '{"n": 1, "m": 2}'}
    rows = score_rows([*"abcd"], make_spec(decoder, json_schema=schema), answers.get)
    assert [row["error"]["message"] for row in rows] == [
        "answer.n is an integer of more than 64 bits, which no column holds",
        "the answer is no JSON: Expecting ',' delimiter; max_new_tokens ended it",
        "the answer does not match the schema: properties.n.type",
        "the answer does not match the schema: additionalProperties",
    ]
    assert {row["error"]["code"] for row in rows} == {"invalid_output"}


def test_a_half_character_in_an_answer_fails_its_row_alone(decoder: str) -> None:
    answers = {"a": '"\\ud83d"', "b": '"fine"'}
    rows = score_rows([*"ab"], make_spec(decoder, json_schema='{"type": "string"}'), answers.get)
    assert (rows[0]["error"]["code"], rows[1]["answer"]) == ("invalid_output", "fine")


@pytest.mark.parametrize(
    ("written", "text", "reason"), [("\nand on", "", "empty"), ("", "", "stop"), ("a\n", "a", "stop")]
)
def test_an_answer_that_a_stop_string_leaves_empty_is_told_from_one_that_is_empty(
    decoder: str, written: str, text: str, reason: str
) -> None:
    rows = score_rows(["a"], make_spec(decoder, stop=("\n",)), lambda _: written)
    assert (rows[0]["text"], rows[0]["finish_reason"], rows[0]["error"]) == (text, reason, None)


def test_a_choice_that_a_stop_string_ends_is_told(decoder: str) -> None:
    with pytest.raises(SpecError, match="stop holds '>', which would end a choice"):
        make_spec(decoder, choices=("a > b",), stop=(">",))


PICKY = (
    "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no ' + m.content) }}{% endif %}"
    "{{ 1 // (m.content | length - 4) }}{{ m.content }}{% endfor %}"
)


def test_a_chat_template_that_raises_for_a_row_s_text_fails_that_row(tmp_path: Path) -> None:
    spec = make_spec(make_decoder(tmp_path, chat=PICKY), messages=(("user", "{{ text }}"),))
    rows = score_rows([{"text": text} for text in ("good one", "bad one", "four", None)], spec, lambda _: "yes")
    told = [row["error"] and (row["error"]["code"], row["error"]["message"]) for row in rows]
    assert told == [
        None,
        ("bad_template", "the model's chat template raised TemplateError"),
        ("bad_template", "the model's chat template raised ZeroDivisionError"),
        ("empty_input", "the text is null or blank"),
    ]


def test_a_chat_template_that_raises_for_what_is_cut_fails_that_row(tmp_path: Path) -> None:
    chat = "{% if messages[0].content | length < 9 %}{{ messages[0].content }}{% else %}{{ 'y' * 90 }}{% endif %}"
    chat = "{% if messages[0].content | length == 50 %}{{ raise_exception('half') }}{% endif %}" + chat
    spec = make_spec(make_decoder(tmp_path, chat=chat), messages=(("user", "{{ text }}"),), max_tokens=60)
    rows = score_rows([{"text": "a" * 80}, {"text": "b"}], spec, lambda _: "yes")
    assert rows[0]["error"]["code"] == "bad_template"
    assert rows[1]["text"] == "yes"


THINKER = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ mood }}"
)


def test_settings_of_a_chat_template_reach_it(tmp_path: Path) -> None:
    model = make_decoder(tmp_path, chat=THINKER)
    asked = {"messages": (("user", "{{ text }}"),)}
    spec = make_spec(model, chat_template_kwargs={"enable_thinking": False, "mood": "calm"}, **asked)
    assert _prompts(spec, {"text": "a"}) == ["<user>a</user><assistant><think></think>calm"]
    assert _prompts(make_spec(model, **asked), {"text": "a"}) == ["<user>a</user><assistant>"]
    for task in ({"task": "summarization"}, {"task": "translation", "target_lang": "de"}):
        shown = _prompts(make_spec(model, chat_template_kwargs={"mood": "calm"}, **task), {"text": "a"})[0]
        assert shown.endswith("<assistant>calm")


def test_settings_of_a_chat_template_are_for_chats_and_are_not_its_messages(decoder: str) -> None:
    with pytest.raises(SpecError, match="are for a chat template, but what is asked here is no chat"):
        make_writing_task(make_spec(decoder, template="{{ text }}", chat_template_kwargs={"a": 1}))
    with pytest.raises(SpecError, match="holds messages, which gristmill gives"):
        make_spec(decoder, messages=CHAT, chat_template_kwargs={"messages": []})


@pytest.mark.parametrize(
    ("written", "thoughts", "text"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("hm</think>yes </think>", "hm", "yes </think>"),
        ("<think></think>yes", "", "yes"),
        ("<think>hm", "hm", ""),
        ("[THINK]hm[/THINK]yes", "hm", "yes"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes", "hm", "yes"),
        (" yes", None, "yes"),
        ("<think>a\nb</think>yes\nno", "a\nb", "yes"),
    ],
)
def test_thoughts_are_parted_from_the_answer(decoder: str, written: str, thoughts: str | None, text: str) -> None:
    kept = score_rows(["a"], make_spec(decoder, reasoning="keep", stop=("\nno",)), lambda _: written)[0]
    assert (kept["reasoning"], kept["text"]) == (thoughts, text)
    dropped = score_rows(["a"], make_spec(decoder, reasoning="drop", stop=("\nno",)), lambda _: written)[0]
    assert (dropped["text"], "reasoning" in dropped) == (text, False)
    left = score_rows(["a"], make_spec(decoder), lambda _: written)[0]
    assert left["text"] == written.removeprefix(" ")


def test_thoughts_that_the_prompt_begins_and_that_do_not_end_are_no_answer(decoder: str) -> None:
    spec = make_spec(decoder, template="{{ text }}<think>\n", reasoning="keep", choices=("yes", "no"))
    cut = Written(encode_text(make_writing_task(spec), "hm, ye"), LENGTH)
    rows = score_rows([{"text": "a"}, {"text": "b"}], spec, lambda p: cut if p[0] == "a" else "hm</think>no")
    assert rows[0]["error"]["message"] == "the answer is none of the choices; max_new_tokens ended it"
    assert (rows[1]["text"], rows[1]["reasoning"]) == ("no", "hm")


def test_thoughts_of_variants_are_maps_and_those_of_chunks_are_joined(decoder: str) -> None:
    spec = make_spec(decoder, template="{{ t }} {{ v }}", variants=("x", "y"), variant_name="v", reasoning="keep")
    row = score_rows([{"t": "a"}], spec, lambda prompt: f"<think>{prompt[-1]}!</think>yes")[0]
    assert (row["reasonings"], row["texts"]) == ({"x": "x!", "y": "y!"}, {"x": "yes", "y": "yes"})


def _chats(*chats: Any) -> Any:
    message = pa.struct([("role", pa.string()), ("name", pa.string()), ("content", pa.string())])
    return pa.array(chats, pa.list_(message))


@pytest.mark.parametrize("in_a_struct", [True, False])
def test_a_column_that_is_a_chat_is_asked_as_one(decoder: str, in_a_struct: bool) -> None:
    spec = make_spec(decoder, messages="talk")
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ü <b>"}]
    blank = [{"role": "user", "content": " "}, {"role": "assistant", "content": None}]
    window = _chats(told, None, [], blank, [{"role": None, "content": "who?"}])
    if in_a_struct:
        window = pa.StructArray.from_arrays([window], ["talk"])
    read = read_texts(window, make_asker(spec))
    codes = ["empty_input", "empty_input", "empty_input", "bad_template"]
    assert [read.failures[row].code for row in (1, 2, 3, 4)] == codes
    wanted = AutoTokenizer.from_pretrained(decoder).apply_chat_template(
        told, add_generation_prompt=True, tokenize=False
    )
    task = make_writing_task(spec)
    assert task.show(task.tokenize([read.texts[0].as_py()]).items) == [wanted]


def test_a_column_that_is_no_chat_is_told(decoder: str) -> None:
    spec = make_spec(decoder, messages="talk")
    for kind in (pa.string(), pa.list_(pa.string()), pa.list_(pa.struct([("role", pa.string())]))):
        window = pa.StructArray.from_arrays([pa.nulls(1, kind)], ["talk"])
        with pytest.raises(SpecError, match="talk"):
            read_texts(window, make_asker(spec))
    with pytest.raises(SpecError, match="or the name of a column"):
        make_spec(decoder, messages="{{ talk }}")


@pytest.mark.parametrize("answer", ['"\\ud800"', '{"a": "\\uDC00 x"}', '["\\ud83d"]'])
def test_half_of_a_surrogate_pair_in_an_answer_is_invalid(decoder: str, answer: str) -> None:
    spec = make_spec(decoder, json_schema='{"description": "any"}')
    bad, good = score_rows(["one", "two"], spec, lambda prompt: answer if prompt == "one" else '"\\ud83d\\udc69"')
    assert bad["error"]["code"] == "invalid_output"
    assert (good["error"], good["answer"]) == (None, '"👩"')
