"""Settings of a job, as its YAML file says them: every key with its type, default and documentation.

A task's options are not here: they are told where the task is (`udfs/tasks/`), and taken from there. `conf/README.md`
and `conf/job.schema.json` are made of these types (`python -m jobs.telling.reference`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, PositiveInt, model_validator

from jobs.deadlines import Deadline, parse_deadline
from jobs.option_fields import Section, of_spec
from jobs.output_settings import TABLES, OutputSettings
from jobs.paths import canonical, lies_in
from jobs.score_settings import ScoreSettings, as_chat, is_unbounded
from udfs.errors import SpecError
from udfs.hosted.endpoint import BATCHES, HOSTED, Endpoint, Price
from udfs.hosted.refusals import find_refusals
from udfs.spec import ScoreSpec
from udfs.tasks.registry import KINDS, make_spec
from udfs.tasks.text_classification import reads_pairs
from udfs.tasks.text_generation import asks_questions, question_columns
from udfs.text.pairs import as_template
from udfs.text.templates import is_template, template_columns

FILE_FORMATS = frozenset({"parquet", "json", "csv", "text", "orc", "avro", "xml", "binaryfile"})
BATCH_FORMATS = frozenset({"openai-batch", "anthropic-batch"})
# Of requests, by their dialect: the columns of a table of them.
_REQUEST_COLUMNS = {"openai-batch": ("body", "custom_id", "url"), "anthropic-batch": ("custom_id", "params")}
_OF_SOME_ROWS = ("skipchange", "ignoredeletes", "starting", "ending", "streaming-skip", "readchange")  # options
_LAID_OUT = ("problem", "request")  # of lines that are laid out as a table, see `jobs.batch_files.lines`
_ASKED_BY_REQUESTS = (
    *("task", "model", "text", "prompt", "messages"),
    *("schema", "choices", "variants", "options_from", "n"),
)
_SPELT_OTHERWISE = {*("text", "prompt", "messages", "variants", "variants_as", "json_schema", "engine", "endpoint")}


class InputSettings(Section):
    """Where the rows come from: a path with its format, a catalog table, or a query."""

    path: str | None = Field(None, description="A file or directory, as Spark takes it; or one of `table` and `query`.")
    format: str = Field(
        "parquet",
        description="Of `path`: any format that Spark reads; or `openai-batch`, `anthropic-batch`: the request files "
        "of these services, for a job with `models`.",
    )
    options: dict[str, str | int | float | bool] = Field({}, description="Spark's options for reading that format.")
    table: str | None = Field(None, description="A catalog table.")
    query: str | None = Field(None, description="A SQL query; it is one increment.")
    increment_bytes: Annotated[ByteSize, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="Size of an increment, as `512MB`; `auto` takes about ten minutes' worth."
    )
    ignore_corrupt: bool = Field(False, description="Leave files out that cannot be read, instead of failing.")
    dedupe_files: bool = Field(
        False, description="Leave files out that have the rows of one that was read before: moved, copied, linked to."
    )
    key: list[str] = Field(
        [],
        description="Columns that identify a row; checked to be there; a retry may need them, a merged table does.",
    )
    changes: Literal["stop", "follow"] = Field(
        "stop",
        description="Of a table of Delta or Iceberg whose rows were changed or deleted: `follow` scores changed rows "
        "again and deletes what is gone, for output.mode `merge`; `stop` ends the job with exit 2.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> InputSettings:
        given = [name for name in ("path", "table", "query") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, table and query, not {' and '.join(given) or 'none'}")
        if self.ignore_corrupt and not self.is_files():
            raise ValueError("ignore_corrupt is for files: an input.path in a format that Spark reads file by file")
        if self.dedupe_files and not self.is_files():
            raise ValueError("dedupe_files is for files: an input.path in a format that Spark reads file by file")
        if any(name.lower() == "ignorechanges" for name in self.options):
            raise ValueError("options.ignoreChanges gives rows again that are scored already; take skipChangeCommits")
        silent = [name for name in self.options if name.lower() in ("ignorecorruptfiles", "ignoremissingfiles")]
        if silent and self.is_files():
            raise ValueError(f"options.{silent[0]} leaves files out in silence; ignore_corrupt names them")
        return self

    def is_files(self) -> bool:
        """Plain files in a directory, as against a table with a log of its own."""
        return self.path is not None and self.format.lower() in FILE_FORMATS | BATCH_FORMATS

    def reader(self) -> str:
        """What Spark reads the files by; lines of requests are laid out as Parquet first."""
        return "parquet" if self.format in BATCH_FORMATS else self.format


def _section_of(problem: str) -> str:
    """Where the key lies by whose name a problem of a spec begins."""
    return "batching" if problem.split()[0] in BatchingSettings.model_fields else "score"


class BatchingSettings(Section):
    """How rows become micro-batches; none of it changes an answer."""

    max_batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto", description="Token budget of a micro-batch, padding included; `auto` measures it as the engine starts."
    )
    batch_timeout_s: PositiveInt = of_spec("batch_timeout_s")
    window_rows: PositiveInt = of_spec("window_rows")
    dedupe: bool = of_spec("dedupe")


class LimitSettings(Section):
    """When a job stops."""

    deadline: Annotated[Deadline | None, BeforeValidator(parse_deadline)] = Field(
        None, description="`2h`, `1h30m`, `'06:00'` (the next one), `'2026-11-25 06:00'`; see exit code 4."
    )
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05,
        description="Share of failed rows above which the job stops, after an increment that makes 100 rows or more "
        "or at its end, and exits with 3.",
    )
    max_usd: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Of a batch engine with a `price`: no batch is sent that could bring what the output has cost, all "
        "its runs together, above this; see exit code 4.",
    )


class CostSettings(Section):
    """Turns seconds into money in the report."""

    usd_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of a machine that scores; the report has it times the machines and the time."
    )
    compare: bool = Field(
        True,
        description="Of runs that score for a minute or more: measure in the end, in a few seconds or half a percent "
        "of that time, what the same model takes for some of the texts one at a time, and report what was saved.",
    )


class SparkSettings(Section):
    """The session that is made where there is none yet."""

    master: str = Field("local[*]", description="Of a session that gristmill starts itself.")
    conf: dict[str, str | int | float | bool] = Field({}, description="Likewise: Spark's own settings.")


class Settings(Section):
    """A job, as its YAML file says."""

    input: InputSettings
    output: OutputSettings
    score: ScoreSettings
    models: dict[str, str] = Field(
        {},
        description="Of a job whose rows are requests: the models by the names that requests give them. `score` then "
        "holds what requests leave open, as `max_new_tokens`.",
    )
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()
    cost: CostSettings = CostSettings()
    spark: SparkSettings = SparkSettings()

    @model_validator(mode="before")
    @classmethod
    def _requests_ask_themselves(cls, values: Any) -> Any:
        """A job of requests has its questions, and its models, elsewhere."""
        if not isinstance(values, dict) or not values.get("models"):
            return values
        score, limits = values.get("score") or {}, values.get("limits") or {}
        if given := [name for name in _ASKED_BY_REQUESTS if name in score]:
            raise ValueError(f"score.{given[0]} is for jobs without models; requests say it themselves")
        models = values["models"]
        first = next(iter(models.values())) if isinstance(models, dict) else models
        own = {"task": "text-generation", "model": first, "prompt": "request", "temperature": 1.0, "overflow": "fail"}
        return {**values, "score": {**own, **score}, "limits": {"max_error_rate": 1.0, **limits}}

    @model_validator(mode="after")
    def _requests_have_models(self) -> Settings:
        dialects = {self.input.format, self.output.format} & BATCH_FORMATS
        if len(dialects) > 1:
            raise ValueError("input.format and output.format are of two services; choose one")
        if bool(dialects) != bool(self.models):
            raise ValueError(
                "models are for input.format or output.format openai-batch or anthropic-batch, and these need models"
            )
        if self.output.errors and self.output.format != "openai-batch":
            raise ValueError("output.errors is for output.format openai-batch")
        if dialects and getattr(self.score, "overflow", None) == "chunk":
            raise ValueError("score.overflow is chunk, and requests are not read in chunks; take fail or truncate")
        return self

    def dialect(self) -> Any:
        """Whose requests the rows are; None where they are none."""
        return next(iter({self.input.format, self.output.format} & BATCH_FORMATS), None)

    @model_validator(mode="after")
    def _hosted_fits(self) -> Settings:
        problems = list(self._find_hosted_problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _find_hosted_problems(self) -> Iterator[str]:
        """What does not fit to a model that is hosted, or to one that is not."""
        engine, endpoint = self.score.engine, self.score.endpoint
        if engine not in HOSTED:
            if endpoint is not None:
                yield f"score.endpoint is for {', '.join(HOSTED)}, and score.engine is {engine}"
            if self.limits.max_usd is not None:
                yield "limits.max_usd is for score.engine openai-batch or anthropic-batch"
            return
        if self.models:
            yield f"score.engine {engine} is for jobs without models"
        elif not self.is_hosted_in_batches() and self.limits.max_usd is not None:
            yield "limits.max_usd is for score.engine openai-batch or anthropic-batch, whose batches can be held back"
        elif self.limits.max_usd is not None and (endpoint is None or endpoint.price is None):
            yield "limits.max_usd needs score.endpoint.price, the provider's list prices"
        elif self.limits.max_usd is not None and endpoint is not None and is_unbounded(endpoint.body):
            yield (
                "limits.max_usd needs to know how long an answer may be, and score.endpoint.body takes out what "
                "says so; give it another, as max_tokens"
            )
        if endpoint is not None and endpoint.price is not None:
            yield from self._find_missing_prices(endpoint.price.model_fields_set)

    def _find_missing_prices(self, told: set[str]) -> Iterator[str]:
        """Prices that nobody has told, since what has none would cost nothing."""
        for name in ("input",) if self.score.task == "feature-extraction" else ("input", "output"):
            if not told & {name, f"batch_{name}"}:
                yield f"score.endpoint.price.{name} is missing; 0 says that it costs nothing"

    def is_hosted(self) -> bool:
        """A provider runs the model."""
        return self.score.engine in HOSTED

    def is_hosted_in_batches(self) -> bool:
        """It does, by its batch API."""
        return self.score.engine in BATCHES

    def endpoint(self) -> Endpoint | None:
        """Where a hosted model is asked; None of one that is not hosted."""
        if self.score.engine not in HOSTED:
            return None
        told: dict[str, Any] = self.score.endpoint.model_dump() if self.score.endpoint else {}
        price = told.pop("price", None)
        return Endpoint(engine=self.score.engine, price=None if price is None else Price(**price), **told)

    @model_validator(mode="after")
    def _spec_holds(self) -> Settings:
        try:
            if self.is_hosted() and (problems := list(find_refusals(self.spec()))):
                raise SpecError("; ".join(f"{_section_of(problem)}.{problem}" for problem in problems))
            columns = self.text_columns()
            if (exploded := self.exploded()) and exploded[0] not in columns:
                raise SpecError(f"variants ask each row once a value, but no template reads {{{{ {exploded[0]} }}}}")
        except SpecError as error:
            raise ValueError(error.message) from error
        return self

    @model_validator(mode="after")
    def _output_is_apart(self) -> Settings:
        source, output = self.input.path or "", self.output
        targets = {"output.path": output.path, "output.state": output.state or ""}
        for name, target in targets.items():
            if source and target and lies_in(target, source):
                raise ValueError(f"{name} {target} lies in input.path: answers would be read as input")
            if source and target and lies_in(source, target):
                raise ValueError(f"input.path {source} lies in {name}: an output holds answers alone")
        if source and output.is_table and output.path and canonical(source) == canonical(output.path):
            raise ValueError(f"output.path {output.path} is input.path: answers would be read as input")
        if output.table and (self.input.table or "").lower() == output.table.lower():
            raise ValueError(f"output.table {output.table} is input.table: answers would be read as input")
        if output.format in BATCH_FORMATS and (problem := self._find_problem_of_results()):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _merge_fits(self) -> Settings:
        output, source, key = self.output, self.input, self.key()
        if output.mode == "merge":
            if not key:
                raise ValueError("output.mode merge needs input.key, by which rows are replaced")
            kept = None if (columns := self.output_columns()) is None else {name.lower() for name in columns}
            if kept is not None and (absent := [name for name in key if name.lower() not in kept]):
                raise ValueError(f"output.mode merge needs {absent[0]} of input.key in output.columns")
        if source.changes == "follow":
            if output.mode != "merge":
                raise ValueError("input.changes follow needs output.mode merge: rows are replaced, and deleted")
            if source.query or (source.path and source.format.lower() not in TABLES):
                raise ValueError("input.changes follow is for tables of Delta and Iceberg, whose logs tell of changes")
            if some := [name for name in source.options if name.lower().startswith(_OF_SOME_ROWS)]:
                raise ValueError(f"input.changes follow takes all of a table, and input.options.{some[0]} some of it")
        return self

    def _find_problem_of_results(self) -> str | None:
        """Why files of results cannot be where they are to be: they would take another's place."""
        source, target, errors = self.input.path, self.output.path, self.output.errors
        for key, path in (("output.path", target), ("output.errors", errors or f"{target}.errors")):
            if path.endswith("/"):
                return f"{key} {path} is a directory; name a file"
            if source and canonical(path) == canonical(source):
                return f"{key} {path} is input.path, which it would overwrite; name another file"
            if source and lies_in(path, source):
                return f"{key} {path} lies in input.path: results would be read as requests"
        return (
            "output.errors is output.path; name two files"
            if errors and canonical(errors) == canonical(target)
            else None
        )

    def spec(self, *, deadline: float | None = None) -> ScoreSpec[Any]:
        """What goes to the executors; `deadline` in seconds since 1970."""
        score = self.score
        asked = score.text or score.prompt
        is_made = asked and (is_template(asked) or score.text_pair is not None)
        if asked and not is_made and self._options_column():  # two columns make a row's text
            asked, is_made = as_template(asked), True
        budget = self.batching.max_batch_tokens
        name, variants = score.named_variants()
        return make_spec(
            **score.model_dump(exclude=_SPELT_OTHERWISE),
            engine="auto" if self.is_hosted() else score.engine,
            endpoint=self.endpoint(),
            template=asked if is_made else None,
            prompt=score.prompt if score.task == "feature-extraction" else None,
            messages=as_chat(score.messages),
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
        return bool(self.models) or spec.template is not None or asks_questions(spec)

    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of, an exploded variant's among them."""
        if self.models:
            return _LAID_OUT if self.input.format in BATCH_FORMATS else _REQUEST_COLUMNS[self.dialect()]
        spec = self.spec()
        if options := self._options_column():
            return tuple(sorted({*self._asked_columns(), options}))
        if asks_questions(spec):
            return question_columns(spec)
        if reads_pairs(spec):
            return tuple(sorted({column for columns in self._pair_columns().values() for column in columns}))
        asked = self.score.text or self.score.prompt or ""
        return template_columns(asked) if is_template(asked) else (asked,)

    def columns_by_setting(self) -> dict[str, tuple[str, ...]]:
        """The settings that say what is read, and the columns of the input that each names."""
        if self.models:
            return {"requests": self.text_columns()}
        if reads_pairs(self.spec()):
            return self._pair_columns()
        if options := self._options_column():
            return {self.asked_by(): self._asked_columns(), "options_from": (options,)}
        return {self.asked_by(): self.input_columns()}

    def _options_column(self) -> str | None:
        """The column of each row's own options."""
        return getattr(self.score, "options_from", None) if KINDS[self.score.task].options.writes else None

    def _asked_columns(self) -> tuple[str, ...]:
        """The columns of the text, without that of the options."""
        spec = self.spec()
        return question_columns(spec) if asks_questions(spec) else template_columns(spec.template or "")

    def _pair_columns(self) -> dict[str, tuple[str, ...]]:
        parts = {"text": self.score.text or "", "text_pair": self.score.text_pair or ""}
        return {name: template_columns(part) if is_template(part) else (part,) for name, part in parts.items()}

    def plain_columns(self) -> dict[str, str]:
        """The settings that are a column's name by itself, and that column."""
        names = ("text", *(["prompt"] if KINDS[self.score.task].options.writes else []), "text_pair")
        told = {name: getattr(self.score, name) for name in names if not self.models}
        return {name: text for name, text in told.items() if text is not None and not is_template(text)}

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
