"""Options that are told where a spec or a task has them, as keys of the settings."""

from __future__ import annotations

from dataclasses import Field as OptionField
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from udfs.spec import thaw
from udfs.tasks.registry import SHARED, task_options


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def of_spec(name: str) -> Any:
    """A default and its documentation, as the spec has them."""
    return Field(SHARED[name].default, description=SHARED[name].metadata["doc"])


def of_task(name: str) -> Any:
    """As `of_spec`, of an option of a task's own."""
    option, _ = task_options()[name]
    return Field(option.default, description=option.metadata["doc"])


def field_of(option: OptionField[Any], hint: Any) -> tuple[Any, Any]:
    """An option of a spec as a key of the settings: its type, and its default with its documentation."""
    told, kind = option.metadata, _as_lists(hint)
    if told["check"]:
        kind = Annotated[kind, BeforeValidator(told["check"])]
    return kind, Field(thaw(option.default), description=told["doc"], **_bound(told["least"]))


def _bound(least: float | None) -> dict[str, Any]:
    if least is None:
        return {}
    more = {"json_schema_extra": {"minimum": least}} if least > 1 else {}  # which the spec tells, and editors mark
    return {"gt": 0} | more if least >= 1 else {"ge": 0}


def _as_lists(hint: Any) -> Any:
    """A type as YAML writes it, which knows lists where a spec has tuples."""
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]  # made as the program runs
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_as_lists, get_args(hint)))]  # noqa: UP007  # likewise
    return hint


def fields_of(kind: type[Any], **nested: Any) -> dict[str, Any]:
    """The options of a dataclass as keys of the settings; `nested` are those that are sections themselves."""
    hints = get_type_hints(kind)
    told = {f.name: field_of(f, hints[f.name]) for f in fields(kind) if "doc" in f.metadata}
    return told | {name: (section, told[name][1]) for name, section in nested.items()}
