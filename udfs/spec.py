"""The one thing that crosses from the driver to the executors: what is asked of which model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from udfs.errors import SpecError

Overflow = Literal["truncate", "chunk", "fail"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
T = TypeVar("T")


def option(
    default: T,
    doc: str,
    *,
    least: float | None = None,
    for_engine: bool = True,
    decides: bool = True,
    check: Callable[[Any], Any] | None = None,
) -> T:
    """A field of a spec, or of a task's options: the one place where an option is told.

    Settings, UDFs, the reference of all settings and the fingerprint of an output are made from it.

    Args:
        default: What holds where nobody says otherwise; outputs that were begun without the option keep it.
        doc: What it means, as a user reads it.
        least: The smallest number that it may be.
        for_engine: An engine hears of it; else it is the workers' business, and one engine serves all of its values.
        decides: It decides a row's answer, so that another value makes another job's output.
        check: Takes what a user has given, and raises ValueError where that cannot be meant.
    """
    told = {"doc": doc, "least": least, "for_engine": for_engine, "decides": decides, "check": check}
    return field(default=default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one task takes beside what all tasks share. A task's file has its own kind of them.

    Attributes:
        task: Hugging Face's name of the task.
        writes: Its model writes.
        chunks: What becomes of the answers to the chunks of a long text; None where a text is never read in chunks.
    """

    task: ClassVar[str]
    writes: ClassVar[bool] = False
    chunks: ClassVar[Literal["pooled", "joined", "summarized"] | None] = "pooled"

    @property
    def asked_for(self) -> tuple[str, ...]:
        """What each row is asked for once, in the order of its answers; empty where it has one answer."""
        return ()

    def unread_by_engine(self, files: Any) -> frozenset[str]:
        """Options that an engine of this model, a `ModelFiles`, does without: one serves all of their values."""
        return frozenset()

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        """What does not fit together, within these options and with the rest of the spec."""
        yield from find_wrong_values(self)


OptionsT_co = TypeVar("OptionsT_co", bound=Options, covariant=True)


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(Generic[OptionsT_co]):
    """What is asked of which model: what all tasks share, and the options of one.

    Raises:
        SpecError: Options that do not fit together.
    """

    options: OptionsT_co
    model: str
    revision: str | None = option(None, "Commit of a hub id; without one, the commit that the driver has.")
    base_model: str | None = option(
        None,
        "Of a LoRA adapter (`pip install 'gristmill[lora]'`), the model that it changes, named as `model`; without it, "
        "the one that the adapter names.",
    )
    base_revision: str | None = option(None, "Commit of a `base_model` that is a hub id, as `revision`.")
    template: str | None = option(
        None,
        "Jinja2 over the fields of the input struct; without it the input column is the text.",
        for_engine=False,
    )
    max_tokens: int | None = option(
        None,
        "Longest text in tokens, special ones included; of a decoder the longest prompt: what it reads, less "
        "`max_new_tokens`. Without it, the model's own limit.",
        least=4,
    )
    overflow: Overflow = option(
        "truncate",
        "What becomes of a longer text: `truncate` it, read it in `chunk`s that end where sentences do, or `fail` its "
        "row. text-generation knows no `chunk`.",
    )
    chunk_overlap: int = option(
        0,
        "Tokens of a chunk that the next one may repeat; not for translation and token-classification, which join.",
        least=0,
        for_engine=False,
    )
    precision: Precision = option(
        "auto", "Floating-point type of weights and activations; `auto` takes what the device multiplies fastest."
    )
    max_batch_tokens: int | None = option(
        None,
        "Token budget of a micro-batch, padding included; without it, the engine measures one as it starts.",
        least=1,
        decides=False,
    )
    batch_timeout_s: int = option(
        600, "A micro-batch that takes longer hangs: its engine is replaced.", least=1, decides=False
    )
    window_rows: int = option(8192, "Rows that are sorted and cut together.", least=1, for_engine=False, decides=False)
    dedupe: bool = option(True, "Score identical texts of a window once.", for_engine=False, decides=False)
    deadline: float | None = option(
        None,
        "In seconds since 1970; rows that are not scored by then fail as `expired`.",
        for_engine=False,
        decides=False,
    )
    endpoint: Any = option(
        None,
        "Where a hosted model is asked, as a `udfs.hosted.endpoint.Endpoint`; without it, gristmill runs the model.",
        for_engine=False,
    )

    def __post_init__(self) -> None:
        problems = [*self._find_problems(), *self.options.find_problems(self)]
        if problems:
            raise SpecError("; ".join(problems))

    def _find_problems(self) -> Iterator[str]:
        yield from find_wrong_values(self)
        if self.overflow == "chunk" and self.options.chunks is None:
            yield f"overflow is 'chunk', which {self.task} does not do; choose truncate or fail"
        if self.chunk_overlap > 0 and self.overflow != "chunk":
            yield f"chunk_overlap belongs to overflow 'chunk', not to {self.overflow!r}"
        if self.chunk_overlap > 0 and self.options.chunks == "joined":
            yield f"{self.task} joins the answers to chunks; with chunk_overlap some would be there twice"

    @property
    def task(self) -> str:
        """Hugging Face's name of the task."""
        return self.options.task

    def is_late(self) -> bool:
        """The deadline has passed, by this machine's clock."""
        return self.deadline is not None and time.time() >= self.deadline

    def for_engine(self) -> dict[str, Any]:
        """What an engine is started with, ready for JSON; `udfs.tasks.registry.read_spec` makes a spec of it."""
        return self._tell(lambda told: told.metadata.get("for_engine", True))

    def decides_answers(self) -> dict[str, Any]:
        """What decides a row's answer, ready for JSON."""
        of_chunks = () if self.overflow == "chunk" else ("chunk_overlap", "chunk_pooling")
        told = self._tell(lambda told: told.metadata.get("decides", True))
        if self.endpoint is not None:
            told["endpoint"] = self.endpoint.decides_answers()
        return {name: value for name, value in told.items() if name not in of_chunks}

    def _tell(self, wanted: Callable[[Field[Any]], bool]) -> dict[str, Any]:
        held = [(self, f) for f in fields(self) if f.name != "options"]
        held += [(self.options, f) for f in fields(self.options)]  # type: ignore[misc]  # two kinds of owners
        return {"task": self.task, **{f.name: thaw(getattr(owner, f.name)) for owner, f in held if wanted(f)}}


def list_problems(name: str, values: Iterable[str]) -> Iterator[str]:
    """What is wrong with an option that is a list of different strings."""
    if isinstance(values, str) or any(not value.strip() for value in values):
        yield f"{name} needs a list of values that are not blank"
    elif len(set(values)) < len(list(values)):
        yield f"{name} holds a value more than once"


def freeze(value: Any) -> Any:
    """Lists of any kind as tuples; strings and what is no list as they are."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return value
    return tuple(map(freeze, value))


def thaw(value: Any) -> Any:
    """Tuples as lists, ready for JSON."""
    return list(map(thaw, value)) if isinstance(value, tuple) else value


def find_wrong_values(owner: Any) -> Iterator[str]:
    """Values of fields that are none of the possible ones, no numbers, or too small."""
    hints = get_type_hints(type(owner))
    for told in fields(owner):
        value = getattr(owner, told.name)
        choices = _literals(hints[told.name])
        if choices and value not in choices:
            shown = ", ".join(str(choice) for choice in choices if choice is not None)
            yield f"{told.name} is {value!r}; choose one of {shown}"
        least = told.metadata.get("least")
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{told.name} is {value}; it must be a finite number"
        elif least is not None and value is not None and value < least:
            yield f"{told.name} is {value}; it must be {least} or more"


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values that a type allows; none where it allows any."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)] if type(None) in get_args(hint) else []
    found = _literals(parts[0]) if len(parts) == 1 else ()
    return (*found, None) if found else ()
