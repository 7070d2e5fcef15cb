"""Whether what gristmill reads of a config.json is of the kind that it takes it for: a model may write anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from udfs.errors import ModelError

_MOST_LABELS = 1_000_000


def check_config(name: str, config: dict[str, Any]) -> None:
    """Refuse a config.json whose values are of other kinds than transformers writes.

    Args:
        name: The model's, as the user gave it.
        config: Its config.json.

    Raises:
        ModelError: One is; with its key.
    """
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key, (fits, told) in _KINDS.items():
            if part.get(key) is not None and not fits(part[key]):
                raise ModelError(f"model {name!r}: config.json has {key} {part[key]!r:.100}, which is no {told}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    """As transformers has it: Music Flamingo's has 1200.0 places."""
    return _is_int(value) or (isinstance(value, float) and value.is_integer())


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number_of_labels(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= _MOST_LABELS


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architectures": (_are_names, "list of names"),
    "id2label": (_is_dict, "object of labels by their numbers"),
    "num_labels": (_is_number_of_labels, "number of labels"),
    "text_config": (_is_dict, "object"),
    "rope_scaling": (_is_dict, "object"),
    "rope_parameters": (_is_dict, "object"),
    "max_position_embeddings": (_is_whole, "whole number"),
    "n_positions": (_is_whole, "whole number"),
    "pad_token_id": (_is_int, "number"),
}
