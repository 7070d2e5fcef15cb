"""Messages as chat templates take them: text alone, whatever parts or blocks it came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udfs.batch_api.requests import RefusedError, check_known, check_text, read_object

_OF_PART = {"type", "text", "refusal", "annotations", "logprobs", "citations", "cache_control"}


def read_text(content: Any, param: str, *, kinds: Sequence[str] = ("text",)) -> str:
    """A content that is a string, or parts of text, as one string.

    Raises:
        RefusedError: It holds something else: an image, a sound, a file.
    """
    if isinstance(content, str):
        return check_text(content, param)
    if not isinstance(content, list):
        raise RefusedError(f"{param} is neither a string nor a list of parts", code="invalid_type", param=param)
    return "".join(_read_part(part, f"{param}[{place}]", kinds) for place, part in enumerate(content))


def _read_part(part: Any, param: str, kinds: Sequence[str]) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in kinds:
        told = f"{param} is of type {kind!r:.40}, and the model reads text alone" if kind else f"{param} has no type"
        raise RefusedError(told, code="invalid_value", param=param)
    check_known(part, _OF_PART, param)
    text = part.get("text", part.get("refusal"))
    if not isinstance(text, str):
        raise RefusedError(f"{param}.text is no string", code="invalid_type", param=param)
    return check_text(text, param)


def read_arguments(arguments: str) -> Any:
    """Arguments of a call as a template takes them: as an object where they are one."""
    value, wrong = read_object(arguments)
    return arguments if wrong else value


def make_chat(
    messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), goes_on: bool = False
) -> dict[str, Any]:
    """A chat as `udfs.text.chats` takes it."""
    chat: dict[str, Any] = {"messages": list(messages)}
    if tools:
        chat["tools"] = list(tools)
    if goes_on:
        chat["continue"] = True
    return chat
