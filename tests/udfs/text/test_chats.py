"""What a model's chat template may take, whatever it does; a template is untrusted."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.writers import make_decoder
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.text import chats
from udfs.text.chats import Chat, make_chat

_GROW = "{% set n = namespace(x=['lol']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
_ASK = [[("user", "hi")]]

TOO_MUCH_MEMORY = {
    "a text, repeated": "{{ 'a' * 10**10 }}",
    "a list, repeated": "{{ [1] * 10**10 }}",
    "old formatting": "{{ '%10000000000d' % 1 }}",
    "new formatting": "{{ '{:>10000000000}'.format(1) }}",
    "a filter that fills up": "{{ 'a' | center(10**10) }}",
    "a filter that indents": "{{ [[1]] | tojson(indent=10**10) }}",
    "a text that doubles": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s * 2 %}{% endfor %}",
    "lists that are joined": (
        "{% set n = namespace(s=['ab']) %}{% for i in range(60) %}{% set n.s = [n.s | join, n.s | join] %}{% endfor %}"
    ),
}
TOO_MUCH_TIME = {
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9) %}{% endfor %}"
    + "{% endfor %}{% endfor %}",
    "a number to a power": "{{ (7 ** (10 ** 8)) % 2 }}",
    "lists that hold themselves twice": _GROW + "{{ n.x | tojson }}",
    "the same, compared": _GROW + "{% set m = n.x %}" + _GROW + "{{ m == n.x }}",
    "an expression that backtracks": "{{ (' ' * 300000) | wordwrap(1) }}",
    "one that takes long to compile": "{{ a }}" * 400_000,
}
NOT_JINJA = {
    "brackets in brackets": "{{" + "(" * 100_000 + "1" + ")" * 100_000 + "}}",
    "blocks in blocks": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
}


@pytest.fixture
def chat_by(tmp_path: Path) -> Callable[[str], Chat]:
    return lambda template: make_chat(open_model(make_decoder(tmp_path / "model", chat=template), None))


@pytest.mark.parametrize("template", TOO_MUCH_MEMORY.values(), ids=TOO_MUCH_MEMORY)
def test_a_template_that_takes_much_memory_is_refused_and_takes_none_here(
    template: str, chat_by: Callable[[str], Chat]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="takes more memory than any has to"):
        chat_by(template)(_ASK)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.long
@pytest.mark.parametrize("template", TOO_MUCH_TIME.values(), ids=TOO_MUCH_TIME)
def test_a_template_that_takes_long_is_refused(template: str, chat_by: Callable[[str], Chat]) -> None:
    with pytest.raises(ModelError, match="takes more time than any has to"):
        chat_by(template)(_ASK)


@pytest.mark.parametrize("template", NOT_JINJA.values(), ids=NOT_JINJA)
def test_a_template_that_is_too_deep_does_not_parse(template: str, chat_by: Callable[[str], Chat]) -> None:
    with pytest.raises(ModelError, match="does not parse: RecursionError"):
        chat_by(template)


def test_a_template_that_waits_for_a_certain_row_is_refused_at_that_row(chat_by: Callable[[str], Chat]) -> None:
    chat = chat_by("{% if messages[0].content == 'now' %}{{ 'a' * 10**10 }}{% endif %}fine")
    assert chat([*_ASK, *_ASK]) == ["fine", "fine"]
    with pytest.raises(ModelError, match="more memory"):
        chat([*_ASK, [("user", "now")]])
    assert chat(_ASK) == ["fine"]


@pytest.mark.long
def test_time_that_many_chats_have_left_over_is_not_for_one(chat_by: Callable[[str], Chat]) -> None:
    chat = chat_by("{% if messages[0].content == 'now' %}" + TOO_MUCH_TIME["loops in loops"] + "{% endif %}fine")
    assert chat(_ASK * 3_000) == ["fine"] * 3_000
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(ModelError, match="takes more time than any has to"):
        chat([[("user", "now")]])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


def test_a_prompt_is_not_much_longer_than_its_messages(chat_by: Callable[[str], Chat]) -> None:
    chat = chat_by("{{ messages[0].content * 4 }}{{ 'a' * 60000 }}")
    assert [len(prompt) for prompt in chat([[("user", "x" * 100_000)]])] == [460_000]
    with pytest.raises(ModelError, match="more length"):
        chat_by("{{ messages[0].content * 4 }}{{ 'a' * 70000 }}")(_ASK)


def test_half_a_character_is_no_prompt(chat_by: Callable[[str], Chat]) -> None:
    (refused,) = chat_by("{{ '\\ud800' }}")(_ASK)
    assert "refuses messages of user: UnicodeEncodeError" in str(refused)


def test_a_chat_that_a_template_refuses_is_told_in_its_place(chat_by: Callable[[str], Chat]) -> None:
    chat = chat_by("{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}fine")
    first, refused, last = chat([*_ASK, [("user", "no")], *_ASK])
    assert (first, last) == ("fine", "fine")
    assert str(refused).endswith("refuses messages of user: not that")


def test_many_and_long_chats_are_rendered_in_order(chat_by: Callable[[str], Chat]) -> None:
    texts = [*map(str, range(1_000)), "ü😀" * 1_000_000, "</s>\n\u2028"]
    prompts = chat_by("<{{ messages[0].content }}>{{ bos_token }}")([[("user", text)] for text in texts])
    assert prompts == [f"<{text}><s>" for text in texts]


def test_a_renderer_that_is_killed_is_replaced_and_none_is_left(chat_by: Callable[[str], Chat]) -> None:
    chat = chat_by("{{ messages[0].content }}")
    assert chat(_ASK) == ["hi"]
    mine = [child for child in psutil.Process().children() if "udfs.text.rendering" in child.cmdline()]
    for child in mine:
        os.kill(child.pid, signal.SIGKILL)
    assert chat(_ASK) == ["hi"]
    del chat
    chats._template.cache_clear()
    left = [child for child in psutil.Process().children() if "udfs.text.rendering" in child.cmdline()]
    assert not left
