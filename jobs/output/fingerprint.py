"""Whose output it is: what must be the same for a run to go on in it."""

from __future__ import annotations

import secrets
from typing import Any

from jobs.hiding import is_secret, seal, without_secrets
from jobs.input.changes import decides_rows
from jobs.paths import as_uri_has_it, is_here
from jobs.serving import serve
from jobs.settings import Settings
from udfs.model.files import open_model_of
from udfs.model.registry import IN_REGISTRY
from udfs.tasks.registry import option_defaults

_KEY = "input.key"
_MAJOR = 0  # gristmill's major version: another one may give other answers


def describe(settings: Settings, key: str) -> dict[str, Any]:
    """Whose output it is: what decides a row's answer, which rows there are, and how they are written.

    Args:
        settings: The job.
        key: By which values of the input's options are sealed: whoever reads the results reads this too.
    """
    source = settings.input.model_dump(mode="json", include={"path", "format", "options", "table", "query"})
    source["path"] = _one_spelling(source["path"])
    source["query"] = _seal_query(source["query"], key)
    source["options"] = _seal_options({n: value for n, value in source["options"].items() if decides_rows(n)}, key)
    layout = {"output.columns": settings.output.columns, "output.name": settings.output.name, **_as_it_lies(settings)}
    if exploded := settings.exploded():
        layout["score.variants"] = list(exploded[1])
    return {**fingerprint(settings), **{f"input.{key}": value for key, value in source.items()}, **layout}


def _as_it_lies(settings: Settings) -> dict[str, Any]:
    """How an output is laid out, as far as it is not as those of an earlier gristmill all are."""
    output = settings.output
    told: dict[str, Any] = {
        "output.layout": output.layout,
        "output.prefix": output.prefix,
        "output.partition_by": output.partition_by,
    }
    told |= {"input.changes": settings.input.changes}
    if output.is_table:
        told |= {"output.table": output.table or _one_spelling(output.path), "output.mode": output.mode}
        told |= {"output.format": "" if output.table else output.format}
    if output.mode == "merge":  # by another key rows take the place of others
        told |= {_KEY: sorted({name.lower() for name in settings.key()})}
    return {name: value for name, value in told.items() if value not in ("struct", "stop", "", [])}


def _seal_query(query: str | None, key: str) -> str | None:
    """A query without the passwords in it, which tell it from others all the same."""
    told = query and without_secrets(query)
    return query if told == query else f"{told} [{seal(query, key)}]"


def _one_spelling(path: str | None) -> str | None:
    """A path as all its spellings have it; what may be on a cluster's own file system stays as it is."""
    path = path and without_secrets(path)
    return as_uri_has_it(path) if path and ("://" in path or is_here(path)) else path


def make_key() -> str:
    """A key for a new output."""
    return secrets.token_hex(32)


def seal_description(description: dict[str, Any], key: str) -> dict[str, Any]:
    """A description that an earlier gristmill has written in clear, as `describe` writes it now."""
    sealed = {
        "input.options": _seal_options(description.get("input.options", {}), key),
        "input.path": _one_spelling(description.get("input.path")),
        "input.query": _seal_query(description.get("input.query"), key),
    }
    return {**description, **sealed}


def _seal_options(options: dict[str, Any], key: str) -> dict[str, str]:
    """Options of the input, without those that are secret: a password that is changed makes no other job."""
    return {name: seal(without_secrets(str(value)), key) for name, value in options.items() if not is_secret(name)}


def fingerprint(settings: Settings) -> dict[str, Any]:
    """What decides a row's answer: the spec, the text and the model's very files, or who runs it."""
    if settings.models:
        return {"requests": settings.dialect(), "models": _describe_models(settings), "gristmill": _MAJOR}
    spec = settings.spec()
    return {
        **spec.decides_answers(),
        "template": settings.score.text or settings.score.prompt,
        "gristmill": _MAJOR,
        **({} if settings.is_hosted() else {"model_files": open_model_of(spec).hashes()}),
    }


def _describe_models(settings: Settings) -> dict[str, Any]:
    """What decides the answers of each model that requests name."""
    return {
        served.name: [
            {**spec.decides_answers(), "model_files": open_model_of(spec).hashes()}
            for spec in (served.write, served.embed)
            if spec is not None
        ]
        for served in serve(settings).models
    }


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is not the same in two descriptions.

    An option that has its default is one that is not told: an output may be older than it, or tell those of all tasks.
    """
    held, wanted = _without_defaults(held), _without_defaults(wanted)
    if _KEY not in held:  # an earlier gristmill kept none
        wanted.pop(_KEY, None)
    if "input.path" in held:  # an earlier gristmill kept it as it was spelt
        held["input.path"] = _one_spelling(held["input.path"])
    return [key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key)]


def tell_versions(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What to do where another version of the same registered model has scored an output: an alias has moved."""
    before, now = str(held.get("model")), str(wanted.get("model"))
    if before == now or not all(name.startswith(f"{IN_REGISTRY}/") for name in (before, now)):
        return ""
    return f"it was scored by {before}, and this is {now}: --set score.model={before} goes on with that one; else "


def _without_defaults(description: dict[str, Any]) -> dict[str, Any]:
    defaults = option_defaults()
    return {key: value for key, value in description.items() if key not in defaults or value != defaults[key]}
