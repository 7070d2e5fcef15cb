"""A chat as the model's own template writes it, in a sandbox: a template is untrusted input.

Source: transformers, `render_jinja_template`; rendered here, since transformers would bring torch into every worker.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles

Chat = Callable[[Sequence[tuple[str, str]]], str]
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def has_chat(files: ModelFiles) -> bool:
    """Whether the model comes with a chat template."""
    return _find_template(files) is not None


def names_read(files: ModelFiles) -> set[str]:
    """What a model's chat template reads beside what it sets itself."""
    from jinja2.meta import find_undeclared_variables

    source = _find_template(files)
    return find_undeclared_variables(_environment().parse(source)) if source else set()


def make_chat(files: ModelFiles, more: Mapping[str, Any] | None = None) -> Chat:
    """A function from messages, as roles with texts, to the prompt that has the model answer them.

    Args:
        files: The model's.
        more: What the template is given beside the messages.

    Raises:
        ModelError: The model has no chat template, or one that is no Jinja2. So does the function, where the template
            refuses the messages.
    """
    from jinja2 import TemplateError

    if (source := _find_template(files)) is None:
        raise ModelError(f"model {files.name!r} has no chat template; ask it by `prompt`, or take an instruct model")
    try:
        template = _environment().from_string(source)
    except TemplateError as error:
        raise ModelError(f"model {files.name!r}: its chat template does not parse: {error}") from error
    given = {"add_generation_prompt": True, "tools": None, "documents": None, **_special_tokens(files), **(more or {})}

    def chat(messages: Sequence[tuple[str, str]]) -> str:
        told = [{"role": role, "content": text} for role, text in messages]
        try:
            return template.render({**given, "messages": told})
        except Exception as error:
            roles = ", ".join(role for role, _ in messages)
            reason = str(error) if isinstance(error, TemplateError) else type(error).__name__
            raise ModelError(
                f"model {files.name!r}: its chat template refuses messages of {roles}: {reason[:200]}"
            ) from error

    return chat


def _find_template(files: ModelFiles) -> str | None:
    for folder in (files.transformer, files.root):
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    told = files.read_json("chat_template.json").get("chat_template")
    told = told or files.read_json("tokenizer_config.json").get("chat_template")
    if isinstance(told, list):
        named = {entry["name"]: entry["template"] for entry in told}
        return named.get("default")
    return told


def _special_tokens(files: ModelFiles) -> dict[str, str]:
    told = {**files.read_json("special_tokens_map.json"), **files.read_json("tokenizer_config.json")}
    tokens = {name: told.get(name) for name in _SPECIAL}
    return {n: v["content"] if isinstance(v, dict) else v for n, v in tokens.items() if isinstance(v, str | dict)}


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
