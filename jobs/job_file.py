"""A job's YAML file: read, with `--set` laid over it, and checked as a whole before anything starts.

Unknown keys are refused and all mistakes are told at once, since a batch job that stops an hour later over a
misspelt key costs more than a strict parser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.errors import SettingsError
from jobs.hiding import is_secret
from jobs.settings import Settings
from udfs.text.templates import is_template


def load_settings(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read a job's YAML and lay `key=value` overrides over it.

    Args:
        path: The YAML file.
        overrides: `score.max_tokens=128` and the like; values are YAML, so that lists and null can be given.

    Raises:
        SettingsError: No such file, no YAML, or mistakes in it, all of them in one message.
    """
    return check_settings(_read_yaml(Path(path)), overrides, name=str(path))


def check_settings(values: dict[str, Any], overrides: list[str] | None = None, *, name: str) -> Settings:
    """Settings out of values, with overrides laid over them; `name` is what they are called in a message.

    Raises:
        SettingsError: Mistakes in them, all of them in one message.
    """
    for override in overrides or []:
        values = _override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{name} has {error.error_count()} mistake(s):\n{_list_mistakes(error)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} is no job: it needs at least the sections input, output and score")
    return values


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {override}: write it as key=value, as in --set score.max_tokens=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if is_template(text):  # its braces mean something else to YAML
            return _put(values, key.strip().split("."), text, key)
        raise SettingsError(f"--set {override}: the value is no YAML: {error}") from error
    return _put(values, key.strip().split("."), value, key)


def _put(values: dict[str, Any], path: list[str], value: Any, whole: str) -> dict[str, Any]:
    if whole.startswith(("spark.conf.", "input.options.")) and len(path) == len(whole.split(".")) - 2:
        return {**values, ".".join(path): value}  # keys there hold dots themselves
    head, *rest = path
    if not rest:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, dict):
        raise SettingsError(f"--set {whole}: {head} is a value, not a section")
    return {**values, head: _put(inner, rest, value, whole)}


def _list_mistakes(error: ValidationError) -> str:
    return "\n".join(f"  {_where(mistake['loc'])}: {_what(mistake)}" for mistake in error.errors())


def _where(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if not str(part).startswith(("literal[", "constrained-"))) or "score"


def _what(mistake: Any) -> str:
    match mistake["type"]:
        case "extra_forbidden":
            return "there is no such key"
        case "missing":
            return "is missing"
        case "value_error":
            return str(mistake["ctx"]["error"])
    of_spark = mistake["loc"][:2] in (("input", "options"), ("spark", "conf"))
    hidden = of_spark and any(is_secret(str(part)) for part in mistake["loc"][2:])
    hidden = hidden or mistake["loc"][:2] == ("score", "endpoint")  # somebody may have written the key there
    shown = "hidden" if hidden else repr(mistake["input"])
    return f"{mistake['msg'][:1].lower()}{mistake['msg'][1:]} (it is {shown})"
