"""What is looked at before Spark starts: the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jobs.settings import Settings
from udfs.generation.ends import find_ends
from udfs.generation.own_settings import tell_ignored
from udfs.model.files import ModelFiles, open_model, pin
from udfs.model.inputs import check_takes_text
from udfs.tasks.registry import make_task
from udfs.tasks.writing import Writing
from udfs.tasks.writing_options import WritingOptions
from udfs.text.chats import names_read
from udfs.text.choices import check_choices
from udfs.text.codec import load_codec
from udfs.text.schemas import tell_schema


def check_model(settings: Settings) -> Settings:
    """Look at the model before Spark starts: there, safe, of the task's kind, with room for chunks where texts are cut.

    Returns:
        The settings, with the commit that this machine has of a hub's model: all of the run takes that one.

    Raises:
        ModelError, SpecError: It is not.
    """
    spec = settings.spec()
    files = open_model(spec.model, spec.revision)
    check_takes_text(files)
    task = make_task(spec, files)
    if spec.overflow == "chunk":
        task.tokenize([])
    if isinstance(task, Writing):
        check_choices(task.codec, spec.options.form.choices, max_new_tokens=spec.options.max_new_tokens)
    pinned = settings.score.model_copy(update={"revision": pin(spec).revision})
    return settings.model_copy(update={"score": pinned})


def tell_ignored_settings(settings: Settings) -> list[str]:
    """Warns of what the model's own generation settings, the schema and the chat's settings ask for in vain."""
    spec = settings.spec()
    files = open_model(spec.model, spec.revision)
    own = tell_ignored(files, spec)
    told = [own] if own else []
    if isinstance(spec.options, WritingOptions):
        told += tell_schema(spec.options.form.json_schema) if spec.options.form.json_schema else []
        told += _tell_unread(files, spec.options.chat_template_kwargs or {})
    return told


def _tell_unread(files: ModelFiles, given: Mapping[str, Any]) -> list[str]:
    unread = sorted(given.keys() - names_read(files)) if given else []
    return [f"the chat template of model {files.name!r} reads no {', '.join(unread)}"] if unread else []


def name_ends(settings: Settings) -> list[str]:
    """The tokens that end an answer, as the model's files say them."""
    spec = settings.spec()
    files = open_model(spec.model, spec.revision)
    codec = load_codec(files)
    return [f"{codec.show(np.array([end]))} ({end})" for end in sorted(find_ends(files))]


def show_warning(console: Console, warning: str) -> None:
    console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
