"""What is looked at before Spark starts: the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jobs.keys import find_key
from jobs.layout import check_layout
from jobs.serving import serve
from jobs.settings import Settings
from udfs.generation.ends import find_ends
from udfs.generation.own_settings import read_obeyed, tell_ignored
from udfs.hosted.clients import check_installed
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.tasks import make_hosted, tell_form
from udfs.model.files import ModelFiles, open_model, open_model_of, pin
from udfs.model.inputs import check_takes_text
from udfs.model.limits import check_answer_fits
from udfs.model.own_code import check_code_not_needed
from udfs.model.registry import IN_REGISTRY
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.text_classification import (
    TextClassificationOptions,
    check_head_fits,
    make_pair_tokenizer,
    reads_pairs,
)
from udfs.tasks.writing import Writing
from udfs.tasks.writing_options import WritingOptions
from udfs.text.chats import names_read
from udfs.text.choices import check_choices
from udfs.text.codec import load_codec
from udfs.text.schemas import tell_schema
from udfs.text.separators import find_separator


def check_model(settings: Settings) -> Settings:
    """Look at the model before Spark starts: there, safe, of the task's kind, with room for chunks and pairs.

    Returns:
        The settings, with the commit that this machine has of a hub's model, and the version that an alias of a
        registry means now: all of the run takes these.

    Raises:
        ModelError, SpecError: It is not.
        SettingsError: The output's columns would hide some that are kept.
    """
    open_model.cache_clear()  # an earlier run of this process may have had another version
    check_layout(settings)
    if settings.models:
        settings = settings.model_copy(update={"models": {n: _pin_version(m) for n, m in settings.models.items()}})
        for served in serve(settings).specs():
            if served.options.writes:
                check_answer_fits(open_model_of(served), served.options.max_new_tokens)
        return settings
    if settings.is_hosted():
        make_hosted(settings.spec())
        return settings
    spec = settings.spec()
    files = open_model_of(spec)
    check_takes_text(files)
    task = make_task(spec, files)
    check_head_fits(spec, files)
    check_code_not_needed(files)
    if not isinstance(task, Writing):
        task.tokenize([])
    else:
        check_answer_fits(files, spec.options.max_new_tokens)
        read_obeyed(files, num_beams=spec.options.num_beams)
        find_ends(files)
        check_choices(task.codec, spec.options.form.choices, max_new_tokens=spec.options.max_new_tokens)
    held = pin(spec)
    pinned = {name: getattr(held, name) for name in ("model", "revision", "base_model", "base_revision")}
    return settings.model_copy(update={"score": settings.score.model_copy(update=pinned)})


def _pin_version(model: str) -> str:
    """A registry's model by its version, others as they are."""
    return open_model(model).place if model.startswith(IN_REGISTRY) else model


def check_client(endpoint: Endpoint) -> None:
    """Look at what a hosted model needs where it is asked: the client, and the key; the provider is not asked.

    Raises:
        EndpointError, ProviderError: One is not there.
    """
    check_installed(endpoint)
    find_key(endpoint)


def tell_ignored_settings(settings: Settings) -> list[str]:
    """Warns of what the model's own settings, the schema, the chat's settings and a pair's texts ask for in vain."""
    if settings.models:
        writers = [spec for spec in serve(settings).specs() if spec.options.writes]
        return [line for spec in writers if (line := tell_ignored(open_model_of(spec), spec))]
    spec = settings.spec()
    if settings.is_hosted():
        engine, names = settings.score.engine, spec.endpoint.unread
        unread = [f"score.endpoint.{name} is nothing that {engine} reads" for name in names]
        return [*unread, *tell_form(make_hosted(spec))]
    files = open_model_of(spec)
    own = tell_ignored(files, spec)
    told = [own] if own else []
    if isinstance(spec.options, TextClassificationOptions):
        told += _tell_pairs(files, spec)
    if isinstance(spec.options, WritingOptions):
        told += tell_schema(spec.options.form.json_schema) if spec.options.form.json_schema else []
        told += _tell_unread(files, spec.options.chat_template_kwargs or {})
    return told


def _tell_pairs(files: ModelFiles, spec: ScoreSpec[TextClassificationOptions]) -> list[str]:
    """Warns of two texts that the model does not read as the pair that they are."""
    if reads_pairs(spec):
        if make_pair_tokenizer(spec, files).parts_texts:
            return []
        return [
            f"the tokenizer of model {files.name!r} puts nothing between score.text and score.text_pair; if its card "
            "says how it wants the two to be written, write both into score.text"
        ]
    if spec.template and (sign := find_separator(files, spec.template)):
        return [
            f"score.text has {sign!r} in it: two texts that are joined by it are no pair to model {files.name!r}, and "
            "may get other scores than it was trained to give; name the second as score.text_pair"
        ]
    return []


def _tell_unread(files: ModelFiles, given: Mapping[str, Any]) -> list[str]:
    unread = sorted(given.keys() - names_read(files)) if given else []
    return [f"the chat template of model {files.name!r} reads no {', '.join(unread)}"] if unread else []


def name_ends(files: ModelFiles) -> list[str]:
    """The tokens that end an answer, as the model's files say them."""
    codec = load_codec(files)
    return [f"{codec.show(np.array([end]))} ({end})" for end in sorted(find_ends(files))]


def show_warning(console: Console, warning: str) -> None:
    console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
