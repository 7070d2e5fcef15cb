"""A model's separator in a template: texts that are joined by it are not read as the pair that they are."""

from __future__ import annotations

from collections.abc import Iterator
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
    """What a model's tokenizer calls its separator, as its files say, or puts between the texts of a pair."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        told: Any = files.read_json(name).get("sep_token")
        text = told.get("content") if isinstance(told, dict) else told
        if isinstance(text, str) and text:
            return text
    return next(_find_between(files.read_json("tokenizer.json").get("post_processor")), None)


def _find_between(processor: Any) -> Iterator[str]:
    """What a tokenizer.json puts between two texts; many a RoBERTa's and BART's other files do not name it."""
    told = processor if isinstance(processor, dict) else {}
    for part in told.get("processors") or ():
        yield from _find_between(part)
    if isinstance(named := told.get("sep"), list) and named and isinstance(named[0], str):
        yield named[0]
    signs = [_read_sign(piece) for piece in told.get("pair") or ()]
    texts = [number for number, sign in enumerate(signs) if sign is None]
    if len(texts) == 2:
        yield from (sign for sign in signs[texts[0] + 1 : texts[1]] if sign and sign not in signs[: texts[0]])


def _read_sign(piece: Any) -> str | None:
    """A piece of a pair: a special token, or None for a text."""
    token = piece.get("SpecialToken") if isinstance(piece, dict) else None
    return str(token.get("id", "")) if isinstance(token, dict) else None
