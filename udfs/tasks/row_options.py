"""Options of a row: what a job says for all of its rows, said for one of them.

They travel with the row's text, since a text that is to be answered otherwise is another text, and then with each of
its items to the engine, as JSON of what differs from the job's own.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from udfs.spec import ScoreSpec, freeze
from udfs.tasks.writing_options import MOST_ANSWERS, MOST_TOP_LOGPROBS, WritingOptions

_INDEX = "index"  # of an item on the wire: which of a row's answers it is
_SPELT_OTHERWISE = {"schema": "json_schema"}
_TOKEN = re.compile("[0-9]{1,10}")
_HALF = re.compile("[\ud800-\udfff]")


class RowOptionsError(ValueError):
    """Options of a row that are none, or do not fit together; the message holds none of their values."""


def pack_text(text: str, told: Mapping[str, Any] | None) -> str:
    """A row's text and its options as one string; the keys of a schema stay in order, which is that of an answer."""
    ordered = dict(sorted(told.items())) if isinstance(told, Mapping) else told
    return f"[{json.dumps(text, ensure_ascii=False)}, {json.dumps(ordered or None)}]"


def unpack_text(packed: str) -> tuple[str, dict[str, Any] | None]:
    """What `pack_text` made."""
    text, told = json.loads(packed)
    return text, told


def resolve_options(spec: ScoreSpec[Any], told: Mapping[str, Any] | None) -> WritingOptions:
    """A job's options with those of a row laid over them; null is what the job says.

    Raises:
        RowOptionsError: One is unknown, of another type, out of its range, or does not fit to the others.
    """
    job: WritingOptions = spec.options
    if not told:
        return job
    if not isinstance(told, Mapping):
        raise RowOptionsError("the options are no struct, no map and no JSON object")
    values: dict[str, Any] = {}
    for name, value in told.items():
        known = _SPELT_OTHERWISE.get(name, name)
        if known not in ROW_OPTIONS or not hasattr(job, known):
            raise RowOptionsError(f"there is no option {name!r:.60} of a row; there are {', '.join(sorted(_NAMES))}")
        if value is not None:
            values[known] = read_option(name, known, value)
    if any(name in values for name in _FORMS):  # what an answer has to be is said as a whole
        values = {**{name: default for name, default in _FORMS.items() if hasattr(job, name)}, **values}
    made = replace(job, **values)
    if made.temperature == 0:  # nothing is drawn, from however few tokens
        made = replace(made, top_p=1.0, top_k=0)
    if problem := next(iter(made.find_problems(spec)), None):
        raise RowOptionsError(problem)
    return made


def differing(job: WritingOptions, made: WritingOptions, *, index: int = 0) -> str | None:
    """What an engine that knows the job's options has to know of an item's; None where that is nothing."""
    told = {f.name: getattr(made, f.name) for f in fields(made) if f.name in _OF_ENGINE and _differs(made, job, f.name)}
    if index:
        told[_INDEX] = index
    return json.dumps(told, sort_keys=True) if told else None


def read_differing(job: WritingOptions, told: str | None) -> tuple[WritingOptions, int]:
    """What `differing` told: an item's options, and which of its row's answers it is."""
    if told is None:
        return job, 0
    values = json.loads(told)
    index = values.pop(_INDEX, 0)
    return replace(job, **{name: freeze(value) for name, value in values.items()}), index


@functools.lru_cache(maxsize=1024)
def is_repeated(told: str | None) -> bool:
    """An item's prompt is that of its row's first answer, and counts once."""
    return told is not None and _INDEX in json.loads(told)


def _differs(made: WritingOptions, job: WritingOptions, name: str) -> bool:
    return bool(getattr(made, name) != getattr(job, name))


def read_option(name: str, option: str, value: Any) -> Any:
    """What a job's option is by what a row says.

    Args:
        name: What the row calls it.
        option: What the job calls it.
        value: What the row says.

    Raises:
        RowOptionsError: It is of another type, or out of the option's range.
    """
    try:
        return ROW_OPTIONS[option](value)
    except RecursionError:
        raise RowOptionsError(f"{name} is nested too deep") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise RowOptionsError(f"{name} {error}") from None


def _whole(least: int, most: int | None = None) -> Callable[[Any], int]:
    bound = f"{least} or more" if most is None else f"from {least} to {most}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ValueError("is no whole number")
        if value < least or (most is not None and value > most):
            raise ValueError(f"is not {bound}")
        return int(value)

    return read


def _number(least: float, most: float | None = None, *, above: bool = False) -> Callable[[Any], float]:
    bound = f"{least} or more" if most is None else f"from {least} to {most}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("is no number")
        if value < least or (above and value <= least) or (most is not None and value > most):
            raise ValueError(f"is not {bound}")
        return float(value)

    return read


def _strings(value: Any) -> tuple[str, ...]:
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(string, str) and string for string in several):
        raise ValueError("is no string, and no list of strings that are not empty")
    if any(_HALF.search(string) for string in several):
        raise ValueError("has half of a surrogate pair in it")
    return tuple(several)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _schema(value: Any) -> str:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise ValueError("is no JSON schema")
    return json.dumps(value)


def _bias(value: Any) -> dict[str, float]:
    pairs = dict(value) if isinstance(value, Mapping | list) else {"": 0}
    if not all(_TOKEN.fullmatch(str(key)) for key in pairs):
        raise ValueError("is no mapping of token ids to numbers")
    one = _number(-100, 100)
    return {str(int(key)): one(bias) for key, bias in pairs.items()}


def _form(value: Any) -> str:
    if value not in ("text", "json_object"):
        raise ValueError("is neither text nor json_object")
    return str(value)


def _seed(value: Any) -> int:
    return _whole(-(1 << 63), (1 << 64) - 1)(value) % (1 << 64)


# What a row may say, and what is made of it.
ROW_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "max_new_tokens": _whole(1),
    "temperature": _number(0),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(0, (1 << 31) - 1),
    "seed": _seed,
    "stop": _strings,
    "json_schema": _schema,
    "choices": _strings,
    "n": _whole(1, MOST_ANSWERS),
    "logprobs": _flag,
    "top_logprobs": _whole(0, MOST_TOP_LOGPROBS),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _bias,
    "min_tokens": _whole(0),
    "response_format": _form,
}
TOLD_IN_NUMBERS = {*ROW_OPTIONS} - {"stop", "json_schema", "choices", "response_format"}
_FORMS = {"json_schema": None, "choices": (), "response_format": "text"}
_NAMES = {*ROW_OPTIONS, *_SPELT_OTHERWISE} - {*_SPELT_OTHERWISE.values()}
_OF_ENGINE = {*ROW_OPTIONS} - {"n"}
