"""A model's separator in a template: texts that are joined by it are not read as the pair that they are."""

from __future__ import annotations

from typing import Any

from udfs.model.files import ModelFiles
from udfs.text.templates import is_template, template_literals

_COMMON = "[SEP]"  # what people write, also for a model to which it is a text like others


def find_separator(files: ModelFiles, template: str) -> str | None:
    """The separator that a template writes between its texts: the model's own, or the one that most models have."""
    if not is_template(template):
        return None
    written = template_literals(template)
    return next((sign for sign in (read_separator(files), _COMMON) if sign and any(sign in w for w in written)), None)


def read_separator(files: ModelFiles) -> str | None:
    """What a model's tokenizer calls its separator, as its files say."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        told: Any = files.read_json(name).get("sep_token")
        text = told.get("content") if isinstance(told, dict) else told
        if isinstance(text, str) and text:
            return text
    return None
