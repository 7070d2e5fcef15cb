"""Whose output it is: what must be the same for a run to go on in it."""

from __future__ import annotations

from typing import Any

from jobs.input.changes import decides_rows
from jobs.settings import Settings
from udfs.model.files import open_model
from udfs.tasks.registry import option_defaults

_MAJOR = 0  # gristmill's major version: another one may give other answers


def describe(settings: Settings) -> dict[str, Any]:
    """Whose output it is: what decides a row's answer, which rows there are, and how they are written."""
    source = settings.input.model_dump(mode="json", include={"path", "format", "options", "table", "query"})
    source["options"] = {name: value for name, value in source["options"].items() if decides_rows(name)}
    layout = {"output.columns": settings.output.columns, "output.name": settings.output.name}
    if exploded := settings.exploded():
        layout["score.variants"] = list(exploded[1])
    return {**fingerprint(settings), **{f"input.{key}": value for key, value in source.items()}, **layout}


def fingerprint(settings: Settings) -> dict[str, Any]:
    """What decides a row's answer: the spec, the text and the model's very files."""
    spec = settings.spec()
    hashes = open_model(spec.model, spec.revision).hashes()
    return {
        **spec.decides_answers(),
        "template": settings.score.text or settings.score.prompt,
        "model_files": hashes,
        "gristmill": _MAJOR,
    }


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is not the same in two descriptions.

    An option that has its default is one that is not told: an output may be older than it, or tell those of all tasks.
    """
    held, wanted = _without_defaults(held), _without_defaults(wanted)
    return [key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key)]


def _without_defaults(description: dict[str, Any]) -> dict[str, Any]:
    defaults = option_defaults()
    return {key: value for key, value in description.items() if key not in defaults or value != defaults[key]}
