"""What a line of a batch file asks, whoever's shape it has, and why a line is refused."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from udfs.errors import RowError
from udfs.tasks.row_options import RowOptionsError, read_option

Dialect = Literal["openai-batch", "anthropic-batch"]
Kind = Literal["write", "embed"]
_MOST_NESTED = 200  # levels of JSON; json.dumps gives up at a thousand


class RefusedError(Exception):
    """A line that is not answered.

    Args:
        message: Why, for whoever wrote the request.
        status: As HTTP has it; 0 where the line is no request at all, or was never run.
        code: A word for programs.
        param: The parameter that is to blame.
        kind: The kind of error, by the service's own name; None for the one that goes with the status.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param = show_whole(message), param and show_whole(param)
        self.status, self.code, self.kind = status, code, kind


@dataclass(frozen=True)
class Answer:
    """What became of one prompt.

    Args:
        candidates: Of a model that writes, each answer as `udfs.tasks.answers.CANDIDATES` has it.
        vector: Of a model that embeds.
        input_tokens, cached_tokens: Of the prompt.
        error: Why there is neither.
    """

    candidates: Sequence[Mapping[str, Any]] = ()
    vector: np.ndarray | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    error: RowError | None = None


@dataclass(frozen=True)
class Ask:
    """What a line asks of a model.

    Args:
        model: By the name that the line gives it.
        kind: To write or to embed.
        prompts: Texts, lists of token ids, or chats: mappings of `messages` and what else the template is given.
        options: Of the row, as `udfs.tasks.row_options` reads them.
        answer: Makes the body of the response of the answers to the prompts; raises RefusedError.
        tools: Functions that a chat's answer may call, by name; None where it was given none.
        must_call: Which of them it has to call; empty where it need not.
        goes_on: Its answer writes a text on, whose space counts.
        one_call: An answer calls one function at most; what it calls besides is left out.
    """

    model: str
    kind: Kind
    prompts: Sequence[Any]
    options: Mapping[str, Any]
    answer: Callable[[Sequence[Answer]], dict[str, Any]]
    tools: Mapping[str, Mapping[str, Any]] | None = None
    must_call: tuple[str, ...] = ()
    goes_on: bool = False
    one_call: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a batch file.

    Args:
        custom_id: As it was given, whatever it is.
        ask: What it asks; None where it is refused.
        refused: Why.
        url: Where it was meant to go.
    """

    custom_id: Any
    ask: Ask | None = None
    refused: RefusedError | None = None
    url: str = ""


class _DoubledKeyError(ValueError):
    pass


def as_object(value: Any) -> dict[str, Any] | None:
    """A request's object as it is, or as the JSON that a column of a table holds; None for anything else."""
    if isinstance(value, str):
        value, wrong = read_object(value)
        return None if wrong else value
    return value if isinstance(value, dict) else None


def read_json(text: str, collect: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON as others read it too: without what Python alone takes for a number, and with none that no float holds.

    Raises:
        ValueError: It is something else.
        RecursionError: It is nested as deep as no program means it.
    """
    return json.loads(text, object_pairs_hook=collect, parse_constant=_refuse, parse_float=_read_float)


def read_object(text: str) -> tuple[dict[str, Any], str]:
    """A line as an object, and what is wrong with it: empty, or why it is no object or no JSON.

    Of keys that are there twice the last counts for whose line it is, as most parsers have it, and the line is refused.
    """
    doubled: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            doubled.append("")
        return made

    try:
        value = read_json(text.removeprefix("\ufeff"), collect)
    except RecursionError:
        return {}, "the line is nested too deep"
    except ValueError as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return {}, f"the line is no JSON: {told}"
    if not isinstance(value, dict):
        return {}, "the line is JSON, but no object"
    if is_deep(value):
        return value, "the line is nested too deep"
    return value, "a key is there twice in one object" if doubled else ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"it has {constant}")


def _read_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("it has a number that is too large")
    return value


def is_deep(value: Any) -> bool:
    """A value of JSON is nested deeper than any program has to read."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def write_json(value: Any) -> str:
    """Compact JSON on one line that is UTF-8, half characters as they were escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def show_whole(text: str) -> str:
    """A text with a question mark for each half character, which strict parsers of JSON refuse."""
    return text.encode("utf-8", "replace").decode()


def make_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex[:24]}"


@dataclass
class Fields:
    """The fields of an object, each taken once; what is left over is unknown.

    Args:
        values: The object, without what is null.
        where: What it is called in messages; empty for the whole body.
    """

    values: dict[str, Any]
    where: str = ""
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.values = {name: value for name, value in self.values.items() if value is not None}

    def name(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, *kinds: type, default: Any = None, required: bool = False) -> Any:
        """A field's value.

        Raises:
            RefusedError: It is of another kind, or is missing and required.
        """
        self._taken.add(name)
        if name not in self.values:
            if required:
                raise RefusedError(
                    f"{self.name(name)} is missing", code="missing_required_parameter", param=self.name(name)
                )
            return default
        value = self.values[name]
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            told = " or ".join(_SHOWN.get(kind, kind.__name__) for kind in dict.fromkeys(kinds))
            raise RefusedError(f"{self.name(name)} is not {told}", code="invalid_type", param=self.name(name))
        return value

    def ignore(self, *names: str) -> None:
        """Fields that change no answer."""
        self._taken.update(names)

    def take_option(self, name: str, option: str, *kinds: type) -> Any:
        """A field's value that is to be an option of a row, by the option's name.

        Raises:
            RefusedError: It is of another kind, or is none that the option has.
        """
        if (value := self.take(name, *kinds)) is not None:
            try:
                read_option(self.name(name), option, value)
            except RowOptionsError as error:
                raise RefusedError(str(error), code="invalid_request", param=self.name(name)) from None
        return value

    def unknown(self) -> list[str]:
        return sorted(self.values.keys() - self._taken)

    def check_all_known(self) -> None:
        """Refuse what nobody has taken.

        Raises:
            RefusedError: There is such a field.
        """
        if left := self.unknown():
            raise RefusedError(
                f"{self.name(left[0])} is unknown, or is not supported here",
                code="unknown_parameter",
                param=self.name(left[0]),
            )


def check_known(values: Mapping[str, Any], known: Set[str], where: str) -> None:
    """Refuse an object with a field that is not known; one that is null says nothing.

    Raises:
        RefusedError: There is such a field.
    """
    fields = Fields(dict(values), where)
    fields.ignore(*known)
    fields.check_all_known()


_SHOWN: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def check_whole(body: Mapping[str, Any], param: str) -> None:
    """Refuse half characters in whatever place of a request, since it goes through UTF-8.

    Raises:
        RefusedError: There is one.
    """
    check_text(json.dumps(body, ensure_ascii=False), param)


def check_text(text: str, param: str) -> str:
    """Refuse half characters, which no tokenizer takes.

    Raises:
        RefusedError: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{param} has half of a surrogate pair in it", code="invalid_value", param=param) from None
    return text
