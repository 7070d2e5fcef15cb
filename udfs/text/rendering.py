"""A model's chat template at work, in a process of its own; `chats` starts it, and nothing else imports it.

A template is untrusted, and Jinja's sandbox bounds neither its memory nor its time: a loop in a loop, a number to the
power of another, a list that holds itself twice forty times over. What it may take is bounded here by the kernel,
whatever it does; so one that takes more costs this process and no worker.

Lines of JSON: first the template with the names that it is given, answered by the names that it reads; then a list of
chats a line, each line answered by one: a prompt for each chat or what the template has against it, or what is wrong
with the template.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

_LEAST_S, _CHAT_S, _S_A_MB = 3.0, 0.01, 2.0  # processor seconds of a line: at all, a chat, and a megabyte of text
_START_BYTES, _BYTES_A_BYTE = 512 << 20, 64  # of address space: at all, and for each of a line
_START_LENGTH, _LENGTH_A_CHARACTER = 65_536, 8  # a prompt's, in characters: at all, and for each of its messages


def main() -> None:
    """Render until nothing more is asked."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound(_LEAST_S, 0)
    render: Callable[..., str] | None = None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if render is None:
            render, answer = _try(compile_chat, **asked)
            if "made" in answer:
                answer = _try(names_read, asked["template"])[1]
        else:
            _bound(_LEAST_S + _CHAT_S * len(asked) + _S_A_MB * len(line) / 1e6, len(line))
            _, answer = _try(_render_all, render, asked)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def compile_chat(template: str, names: dict[str, Any]) -> Callable[..., str]:
    """A function from `messages` and what else a template is given to a prompt.

    Args:
        template: The template.
        names: More that it is given, by name: special tokens, and what a job adds.
    """
    given = {"add_generation_prompt": True, "tools": None, "documents": None, **names}
    return functools.partial(_environment().from_string(template).render, **given)


def names_read(template: str) -> list[str]:
    """What a template reads beside what it sets itself."""
    from jinja2.meta import find_undeclared_variables

    return sorted(find_undeclared_variables(_environment().parse(template)))


def _bound(seconds: float, bytes_: int) -> None:
    """What may be taken from here on: what earlier lines have left over is no later one's."""
    for limit, value in (
        (resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds)),
        (resource.RLIMIT_AS, _START_BYTES + _BYTES_A_BYTE * bytes_),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS bounds no address space
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _render_all(render: Callable[..., str], chats: list[Any]) -> list[str | dict[str, str]]:
    """Prompts; in the place of one that the template refuses, why."""
    made: list[str | dict[str, str]] = []
    for chat in chats:
        prompt, answer = _try(_render, render, chat)
        if "excess" in answer:
            raise MemoryError if answer["excess"] == "memory" else _TooLongError
        made.append(answer if prompt is None else prompt)
    return made


def _render(render: Callable[..., str], chat: Any) -> str:
    whole = chat if isinstance(chat, dict) else {"messages": [{"role": role, "content": text} for role, text in chat]}
    goes_on = whole.get("continue", False)
    more = {"add_generation_prompt": False} if goes_on else {}
    text = render(messages=whole["messages"], **more, **({"tools": whole["tools"]} if whole.get("tools") else {}))
    if len(text) > _START_LENGTH + _LENGTH_A_CHARACTER * len(json.dumps(whole)):
        raise _TooLongError
    if goes_on:
        text = _cut_after(text, str(whole["messages"][-1]["content"]).strip())
    text.encode()  # a template can write half a character, which no tokenizer takes
    return text


def _cut_after(text: str, last: str) -> str:
    """A chat up to the end of its last message, which the model is to write on."""
    from jinja2 import TemplateError

    place = text.rfind(last)
    if place < 0:
        raise TemplateError("the last message is not in the chat as it is, and cannot be written on")
    return text[: place + len(last)]


class _TooLongError(Exception):
    pass


def _try(work: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What came of it, and what to answer: that, or how it failed."""
    from jinja2 import TemplateError

    try:
        made = work(*args, **kwargs)
        return made, {"made": made if isinstance(made, list) else None}
    except MemoryError:
        return None, {"excess": "memory"}
    except _TooLongError:
        return None, {"excess": "length"}
    except TemplateError as error:
        return None, {"raised": type(error).__name__, "reason": str(error)[:200]}
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        return None, {"raised": type(error).__name__, "reason": type(error).__name__}


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.ext import loopcontrols as LoopControls
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model was trained to say; its body is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControls]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


if __name__ == "__main__":
    main()
