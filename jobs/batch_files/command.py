"""What `gristmill run-batch` is asked, as the settings of a job."""

from __future__ import annotations

from typing import Any

from jobs.batch_files.lines import find_dialect
from jobs.errors import SettingsError
from jobs.job_file import check_settings
from jobs.settings import Settings


def make_settings(
    requests: str,
    results: str,
    *,
    models: list[str],
    errors: str | None = None,
    dialect: str | None = None,
    deadline: str | None = None,
    overrides: list[str] | None = None,
) -> Settings:
    """The job of a command line.

    Args:
        requests, results: Files.
        models: `NAME=MODEL` each.
        errors: Where failures go.
        dialect: `openai` or `anthropic`; None looks into the file.
        deadline: As `limits.deadline`.
        overrides: As `--set` has them.

    Raises:
        SettingsError: Something is missing, or does not fit.
        InputError: There is no such file, or it does not tell whose requests it holds.
    """
    told = f"{(dialect or '').removesuffix('-batch')}-batch" if dialect else find_dialect(requests)
    values: dict[str, Any] = {
        "input": {"path": requests, "format": told},
        "output": {"path": results, "format": told, **({"errors": errors} if errors else {})},
        "models": dict(map(_read_model, models)),
    }
    if not models:
        raise SettingsError("run-batch needs --model NAME=MODEL, for each model that the requests name")
    if len(values["models"]) < len(models):
        raise SettingsError("--model gives two models one name; requests could mean either")
    if deadline:
        values["limits"] = {"deadline": deadline}
    return check_settings(values, overrides, name="run-batch")


def _read_model(told: str) -> tuple[str, str]:
    name, equals, model = told.partition("=")
    if not equals or not name or not model:
        raise SettingsError(f"--model {told}: write it as NAME=MODEL, as in --model gpt-4o-mini=./models/qwen")
    return name, model
