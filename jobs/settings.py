"""Settings of a job: one YAML file, checked as a whole before anything starts.

Unknown keys are refused and all mistakes are told at once, since a batch job that stops an hour later over a
misspelt key costs more than a strict parser.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from jobs.deadlines import Deadline, parse_deadline
from jobs.errors import SettingsError
from udfs.asking import question_columns
from udfs.errors import SpecError
from udfs.spec import Aggregation, ChunkPooling, Overflow, Precision, ScoreSpec, TaskName, WritingEngine
from udfs.templating import is_template, template_columns

FILE_FORMATS = frozenset({"parquet", "json", "csv", "text", "orc", "avro", "xml", "binaryfile"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSettings(_Section):
    """Where the rows come from: a path with its format, a catalog table, or a query."""

    path: str | None = None
    format: str = "parquet"
    options: dict[str, str | int | float | bool] = {}
    table: str | None = None
    query: str | None = None
    increment_bytes: Annotated[ByteSize, Field(gt=0)] | Literal["auto"] = "auto"
    ignore_corrupt: bool = False
    key: list[str] = []

    @model_validator(mode="after")
    def _one_source(self) -> InputSettings:
        given = [name for name in ("path", "table", "query") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, table and query, not {' and '.join(given) or 'none'}")
        if self.ignore_corrupt and not self.is_files():
            raise ValueError("ignore_corrupt is for files: an input.path in a format that Spark reads file by file")
        if any(name.lower() == "ignorechanges" for name in self.options):
            raise ValueError("options.ignoreChanges gives rows again that are scored already; take skipChangeCommits")
        silent = [name for name in self.options if name.lower() in ("ignorecorruptfiles", "ignoremissingfiles")]
        if silent and self.is_files():
            raise ValueError(f"options.{silent[0]} leaves files out in silence; ignore_corrupt names them")
        return self

    def is_files(self) -> bool:
        """Plain files in a directory, as against a table with a log of its own."""
        return self.path is not None and self.format.lower() in FILE_FORMATS


class OutputSettings(_Section):
    """Where the answers go: always Parquet, and what of the input is kept beside them."""

    path: str
    format: Literal["parquet"] = "parquet"
    columns: list[str] | None = None
    name: str = "prediction"


class Message(_Section):
    """One message of a chat; `content` is a template over columns."""

    role: str
    content: str


def _check_languages(value: Any) -> Any:
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return value
    raise ValueError("give a language, or a list of them; `no` is one in quotes alone")


class ScoreSettings(_Section):
    """What is computed, by which model, of which text."""

    task: TaskName
    model: str
    revision: str | None = None
    text: str | None = None
    prompt: str | None = None
    messages: list[Message] = []
    labels: list[str] = []
    hypothesis_template: str | None = None
    multi_label: bool = False
    aggregation_strategy: Aggregation | None = None
    variants: list[str] | dict[str, list[str]] = []
    variants_as: Literal["map", "rows"] = "map"
    max_new_tokens: PositiveInt = ScoreSpec.max_new_tokens
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: list[str] = []
    num_beams: PositiveInt = 1
    engine: WritingEngine = "auto"
    source_lang: str | None = None
    target_lang: Annotated[str | list[str] | None, BeforeValidator(_check_languages)] = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    choices: list[str] = []
    max_tokens: PositiveInt | None = None
    overflow: Overflow = "truncate"
    chunk_overlap: NonNegativeInt = 0
    chunk_pooling: ChunkPooling = "mean"
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _one_question(self) -> ScoreSettings:
        allowed = ("prompt", "messages") if self.task == "text-generation" else ("text",)
        given = [name for name in ("text", "prompt", "messages") if getattr(self, name)]
        if len(given) != 1 or given[0] not in allowed:
            raise ValueError(f"{self.task} takes {' or '.join(allowed)}, not {' and '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _one_variant_name(self) -> ScoreSettings:
        if isinstance(self.variants, dict) and len(self.variants) != 1:
            raise ValueError("variants takes a list, or one name with a list, as in {language: [de, fr]}")
        if isinstance(self.target_lang, list) and self.variants_as == "rows":
            raise ValueError("several languages have their translations in a map; variants_as: rows is of variants")
        name, values = self.named_variants()
        if values and not name.isidentifier():
            raise ValueError(f"variants has the name {name!r}; a template cannot read it")
        return self

    def named_variants(self) -> tuple[str, tuple[str, ...]]:
        """What templates call a variant, and the variants."""
        if isinstance(self.variants, dict):
            return next((name, tuple(values)) for name, values in self.variants.items())
        return "variant", tuple(self.variants)


class BatchingSettings(_Section):
    """How rows become micro-batches; none of it changes an answer."""

    max_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    batch_timeout_s: PositiveInt = 600
    window_rows: PositiveInt = 8192
    dedupe: bool = True


class LimitSettings(_Section):
    """When a job stops."""

    deadline: Annotated[Deadline | None, BeforeValidator(parse_deadline)] = None
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05


class CostSettings(_Section):
    """Turns seconds into money in the report."""

    usd_per_hour: Annotated[float, Field(ge=0)] | None = None


class SparkSettings(_Section):
    """The session that is made where there is none yet."""

    master: str = "local[*]"
    conf: dict[str, str | int | float | bool] = {}


class Settings(_Section):
    """A job, as its YAML file says."""

    input: InputSettings
    output: OutputSettings
    score: ScoreSettings
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()
    cost: CostSettings = CostSettings()
    spark: SparkSettings = SparkSettings()

    @model_validator(mode="after")
    def _spec_holds(self) -> Settings:
        try:
            columns = self.text_columns()
            if (exploded := self.exploded()) and exploded[0] not in columns:
                raise SpecError(f"variants ask each row once a value, but no template reads {{{{ {exploded[0]} }}}}")
        except SpecError as error:
            raise ValueError(error.message) from error
        return self

    @model_validator(mode="after")
    def _output_is_apart(self) -> Settings:
        source, target = (os.path.normpath(path) for path in (self.input.path or "-", self.output.path))
        if PurePath(source) in PurePath(target).parents:
            raise ValueError(f"output.path {self.output.path} lies in input.path: answers would be read as input")
        return self

    def spec(self, *, deadline: float | None = None) -> ScoreSpec:
        """What goes to the executors; `deadline` in seconds since 1970."""
        score = self.score
        own = {"text", "prompt", "messages", "variants", "variants_as", "json_schema"}
        told = score.model_dump(exclude=own).items()
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told}
        asked = score.text or score.prompt
        budget = self.batching.max_batch_tokens
        name, variants = score.named_variants()
        return ScoreSpec(
            **options,
            template=asked if asked and is_template(asked) else None,
            messages=tuple((message.role, message.content) for message in score.messages),
            variants=variants if score.variants_as == "map" else (),
            variant_name=name if variants else None,
            json_schema=None if score.json_schema is None else json.dumps(score.json_schema),
            max_batch_tokens=None if budget == "auto" else budget,
            batch_timeout_s=self.batching.batch_timeout_s,
            window_rows=self.batching.window_rows,
            dedupe=self.batching.dedupe,
            deadline=deadline,
        )

    def asked_by(self) -> str:
        """The setting that says what is asked: `text`, `prompt` or `messages`."""
        return next(name for name in ("text", "prompt", "messages") if getattr(self.score, name))

    def is_templated(self) -> bool:
        """The text is made of several columns, and not a column itself."""
        spec = self.spec()
        return bool(spec.template or spec.messages)

    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of, an exploded variant's among them."""
        spec = self.spec()
        if spec.asks_questions:
            return question_columns(spec)
        asked = self.score.text or self.score.prompt or ""
        return template_columns(asked) if is_template(asked) else (asked,)

    def input_columns(self) -> tuple[str, ...]:
        """Those of the text's columns that come from the input."""
        exploded = self.exploded()
        return tuple(column for column in self.text_columns() if exploded is None or column != exploded[0])

    def exploded(self) -> tuple[str, tuple[str, ...]] | None:
        """Name and values of the column that makes each row several; None where rows stay as they are."""
        name, values = self.score.named_variants()
        return (name, values) if values and self.score.variants_as == "rows" else None

    def output_columns(self) -> list[str] | None:
        """The columns to keep, an exploded variant's among them; None for all."""
        columns, exploded = self.output.columns, self.exploded()
        if columns is None or exploded is None or exploded[0] in columns:
            return columns
        return [*columns, exploded[0]]

    def key(self) -> list[str]:
        """The columns that identify a row of the output; empty where the input's key is not known."""
        exploded = self.exploded()
        return [*self.input.key, exploded[0]] if self.input.key and exploded else self.input.key


def load_settings(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read a job's YAML and lay `key=value` overrides over it.

    Args:
        path: The YAML file.
        overrides: `score.max_tokens=128` and the like; values are YAML, so that lists and null can be given.

    Raises:
        SettingsError: No such file, no YAML, or mistakes in it, all of them in one message.
    """
    values = _read_yaml(Path(path))
    for override in overrides or []:
        values = _override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{path} has {error.error_count()} mistake(s):\n{_list_mistakes(error)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} is no job: it needs at least the sections input, output and score")
    return values


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {override}: write it as key=value, as in --set score.max_tokens=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if is_template(text):  # its braces mean something else to YAML
            return _put(values, key.strip().split("."), text, key)
        raise SettingsError(f"--set {override}: the value is no YAML: {error}") from error
    return _put(values, key.strip().split("."), value, key)


def _put(values: dict[str, Any], path: list[str], value: Any, whole: str) -> dict[str, Any]:
    if whole.startswith(("spark.conf.", "input.options.")) and len(path) == len(whole.split(".")) - 2:
        return {**values, ".".join(path): value}  # keys there hold dots themselves
    head, *rest = path
    if not rest:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, dict):
        raise SettingsError(f"--set {whole}: {head} is a value, not a section")
    return {**values, head: _put(inner, rest, value, whole)}


def _list_mistakes(error: ValidationError) -> str:
    return "\n".join(f"  {_where(mistake['loc'])}: {_what(mistake)}" for mistake in error.errors())


def _where(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if not str(part).startswith(("literal[", "constrained-"))) or "score"


def _what(mistake: Any) -> str:
    match mistake["type"]:
        case "extra_forbidden":
            return "there is no such key"
        case "missing":
            return "is missing"
        case "value_error":
            return str(mistake["ctx"]["error"])
    return f"{mistake['msg'][:1].lower()}{mistake['msg'][1:]} (it is {mistake['input']!r})"
