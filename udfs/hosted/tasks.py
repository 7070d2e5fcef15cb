"""What a hosted model is asked by each task, and the columns that are made of its replies."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.errors import RowError, SpecError, bad_options, invalid_output
from udfs.hosted import anthropic, openai
from udfs.hosted.asked import Asked, Chat, Document, Reply, estimate_laid_over
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.forms import Fitted
from udfs.hosted.refusals import find_refusals, find_refusals_of_way
from udfs.spec import ScoreSpec
from udfs.tasks.answers import answer_columns, answer_fields
from udfs.tasks.feature_extraction import FeatureExtractionOptions
from udfs.tasks.quantizing import TYPES, quantize
from udfs.tasks.row_options import RowOptionsError, resolve_options, unpack_text
from udfs.tasks.scores import SCORE_FIELDS
from udfs.tasks.summarization import SummarizationOptions, ask_in_chat
from udfs.tasks.text_classification import TextClassificationOptions, reads_pairs
from udfs.tasks.text_generation import TextGenerationOptions, asks_questions, read_questions
from udfs.tasks.translation import TranslationOptions, write_request
from udfs.tasks.writing_options import ANY_OBJECT, WritingOptions
from udfs.tasks.zero_shot_classification import ZeroShotOptions
from udfs.text.pairs import split_pair
from udfs.text.questions import ask
from udfs.text.schemas import tell_unbound

_KEPT_OPTIONS = 256  # of rows
_TOKENS_OF_A_LABEL = 256  # beside its own: a model may think before
_WHICH = "Which of the labels suits the text best? Answer with the label alone.\n\n"
_FIRST, _SECOND = "First text:\n", "\n\nSecond text:\n"


class HostedTask(ABC):
    """A task by a hosted model.

    Args:
        spec: What is asked of which model, with its endpoint.

    Attributes:
        fields: Result columns of its own, in order.

    Raises:
        SpecError: Something that a hosted model, or this one's provider, cannot do.
    """

    asks: type[Asked] = Chat
    fields: tuple[pa.Field, ...]

    def __init__(self, spec: ScoreSpec[Any]) -> None:
        if problems := list(find_refusals(spec)):
            raise SpecError("; ".join(problems))
        self.spec = spec

    @property
    def endpoint(self) -> Endpoint:
        endpoint: Endpoint = self.spec.endpoint
        return endpoint

    @property
    def dialect(self) -> ModuleType:
        """How its provider writes requests and replies: `openai` or `anthropic`."""
        return anthropic if self.endpoint.engine == "anthropic-batch" else openai

    @property
    def path(self) -> str:
        """Where its requests go, below the base URL."""
        return str(self.dialect.path_of(self.asks))

    @functools.cached_property
    def laid_over_tokens(self) -> int:
        """Tokens of what the endpoint lays over each request, estimated."""
        return estimate_laid_over(self.endpoint.body)

    @property
    def engine(self) -> str:
        """Who answers, as the result tells it."""
        model = self.spec.model.replace("/", "_").replace(":", "_")
        return f"{self.endpoint.host}:{self.endpoint.engine}/{model}/hosted"

    @abstractmethod
    def ask(self, text: str) -> Sequence[Asked] | RowError:
        """What the model is asked about a text, or why it cannot be."""

    @abstractmethod
    def columns(
        self, asked: Sequence[Sequence[Asked]], replies: Sequence[Sequence[Reply]]
    ) -> tuple[list[pa.Array], dict[int, RowError]]:
        """What was replied, to columns and failures.

        Args:
            asked: Of each of N texts.
            replies: To these; empty where one of them has failed.

        Returns:
            An array of N for each of `fields`, and by the numbers of texts why an answer is none.
        """

    def body(self, asked: Asked) -> dict[str, Any]:
        """A request's body."""
        made: dict[str, Any] = self.dialect.make_body(asked, self.spec.model, self.endpoint)
        return made

    def read(self, outcome: Mapping[str, Any] | RowError, asked: Asked) -> Reply:
        """What was replied to a request: a response's body, or why there is none."""
        if isinstance(outcome, RowError):
            return Reply(error=outcome)
        made: Reply = self.dialect.read_body(outcome, asked)
        return made


class HostedWriting(HostedTask):
    """Tasks whose answer is a text: what the model writes to a prompt or a chat, a summary, translations."""

    def __init__(self, spec: ScoreSpec[WritingOptions]) -> None:
        super().__init__(spec)
        self.fields = answer_fields(spec.options)
        self._asks_questions = asks_questions(spec)
        self._resolve = functools.lru_cache(_KEPT_OPTIONS)(self._resolve_told)

    def ask(self, text: str) -> Sequence[Asked] | RowError:
        way: WritingOptions | RowError = self.spec.options
        if self.spec.options.options_from is not None:
            text, told = unpack_text(text)
            way = self._resolve(json.dumps(told)) if told else way
        if isinstance(way, RowError):
            return way
        return [Chat(messages, way) for messages in self._chats(text)]

    def columns(
        self, asked: Sequence[Sequence[Asked]], replies: Sequence[Sequence[Reply]]
    ) -> tuple[list[pa.Array], dict[int, RowError]]:
        size = max(1, len(self.spec.options.asked_for))
        units = [each.answers for row in replies for each in row or [Reply()] * size]
        none: list[Asked | None] = [None] * size
        ways = [each.way if isinstance(each, Chat) else None for row in asked for each in row or none]
        told = [answers[0] if answers else None for answers in units]
        return answer_columns(self.spec.options, told, units, ways)

    def _chats(self, text: str) -> list[tuple[tuple[str, str], ...]]:
        options = self.spec.options
        if isinstance(options, SummarizationOptions):
            return [ask_in_chat(text).parts]
        if isinstance(options, TranslationOptions):
            source, targets = options.source_lang, options.targets
            return [ask(text, role="user", before=write_request(source, str(to))).parts for to in targets]
        if not self._asks_questions:
            return [(("user", text),)]
        return [tuple((role or "user", part) for role, part in q.parts) for q in read_questions(text)]

    def _resolve_told(self, told: str) -> WritingOptions | RowError:
        try:
            way = resolve_options(self.spec, json.loads(told))
        except RowOptionsError as error:
            return bad_options(str(error))
        if problem := next(iter(find_refusals_of_way(way, self.endpoint)), None):
            return bad_options(problem)
        return way


class HostedLabels(HostedTask):
    """Tasks whose answer is one of some labels; the model chooses, and tells no scores."""

    fields = SCORE_FIELDS

    def __init__(self, spec: ScoreSpec[Any]) -> None:
        super().__init__(spec)
        labels = spec.options.labels
        longest = max(len(label.encode()) for label in labels)
        self._way = TextGenerationOptions(choices=labels, max_new_tokens=_TOKENS_OF_A_LABEL + longest)
        self._pairs = reads_pairs(spec)

    def ask(self, text: str) -> Sequence[Asked] | RowError:
        if self._pairs:
            first, second = split_pair(text)
            text = f"{_FIRST}{first}{_SECOND}{second}"
        listed = "\n".join(f"- {label}" for label in self._way.choices)
        return [Chat((("user", f"{_WHICH}Labels:\n{listed}\n\nText:\n{text}"),), self._way)]

    def columns(
        self, asked: Sequence[Sequence[Asked]], replies: Sequence[Sequence[Reply]]
    ) -> tuple[list[pa.Array], dict[int, RowError]]:
        told = [row[0].answers[0] if row and row[0].answers else None for row in replies]
        columns, failures = answer_columns(self._way, told, [[each] for each in told], [self._way] * len(told))
        labels = columns[0].to_pylist()
        kept = [None if number in failures else label for number, label in enumerate(labels)]
        nulls = [pa.nulls(len(kept), field.type) for field in self.fields[1:]]
        return [pa.array(kept, pa.string()), *nulls], failures


class HostedEmbedding(HostedTask):
    """A text's vector."""

    asks = Document

    def __init__(self, spec: ScoreSpec[FeatureExtractionOptions]) -> None:
        super().__init__(spec)
        self._options = spec.options
        self.fields = (pa.field("embedding", TYPES[spec.options.quantization]),)

    def ask(self, text: str) -> Sequence[Asked] | RowError:
        return [Document((self._options.prompt or "") + text, self._options.dimensions)]

    def columns(
        self, asked: Sequence[Sequence[Asked]], replies: Sequence[Sequence[Reply]]
    ) -> tuple[list[pa.Array], dict[int, RowError]]:
        vectors, failures = list[np.ndarray | None](), dict[int, RowError]()
        for number, row in enumerate(replies):
            vector, problem = self._cut(row[0].vector) if row else (None, None)
            if problem is not None:
                failures[number] = invalid_output(problem)
            vectors.append(vector)
        places = [place for place, vector in enumerate(vectors) if vector is not None]
        if not places:
            return [pa.nulls(len(vectors), self.fields[0].type)], failures
        held = np.stack([vector for vector in vectors if vector is not None])
        made = quantize(held, self._options.quantization, self._options.ranges)
        order = np.full(len(vectors), -1)
        order[places] = np.arange(len(places))
        return [made.take(pa.array(order, mask=order < 0))], failures

    def _cut(self, vector: np.ndarray | None) -> tuple[np.ndarray | None, str | None]:
        """The first numbers of a vector, of length 1 again where it had that; or what is wrong with it."""
        asked, ranges = self._options.dimensions, self._options.ranges
        if vector is None or vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            return None, "the vector is empty, or holds NaN or infinity"
        wanted = asked or (len(ranges[0]) if ranges is not None else len(vector))
        if len(vector) < wanted or (asked is None and len(vector) != wanted):
            return None, f"the vector has {len(vector)} numbers, not {wanted}"
        if len(vector) == wanted:
            return vector, None
        cut = vector[:wanted]
        is_unit = abs(float(np.linalg.norm(vector)) - 1.0) < 1e-2
        return (cut / max(float(np.linalg.norm(cut)), 1e-12) if is_unit else cut), None


def make_hosted(spec: ScoreSpec[Any]) -> HostedTask:
    """The task that a spec asks of a hosted model.

    Raises:
        SpecError: Something that a hosted model, or this one's provider, cannot do.
    """
    match spec.options:
        case FeatureExtractionOptions():
            return HostedEmbedding(spec)
        case TextClassificationOptions() | ZeroShotOptions():
            return HostedLabels(spec)
        case WritingOptions():
            return HostedWriting(spec)
    raise SpecError("; ".join(find_refusals(spec)))


def tell_form(task: HostedTask) -> list[str]:
    """What of a job's schema its provider does not hold the model to, or is in no column."""
    form = getattr(task.spec.options, "form", None)
    if form is None or form.json_schema in (None, ANY_OBJECT):
        return []
    fitted: Fitted = task.dialect.fit_form(form, task.endpoint)
    fails = "an answer that breaks it fails as invalid_output"
    told = []
    if fitted.schema is None:
        told.append(f"score.schema is told {task.endpoint.engine} in the prompt, which binds nobody: {fails}")
    elif not fitted.strict:
        told.append(
            f"score.schema is beyond what {task.endpoint.engine} holds a model to, as by keys that are not required: "
            f"{fails}"
        )
    if fitted.lost:
        told.append(f"score.schema has {', '.join(fitted.lost)}, which the model is told in words alone: {fails}")
    return [*told, *tell_unbound(form.json_schema)]
