"""A text, or a pair of texts, to one of the labels that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from udfs.errors import ModelError
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.sentence_settings import check_settings, read_sentence_config
from udfs.model.tensors import read_shapes
from udfs.spec import ScoreSpec, list_problems, option
from udfs.tasks.activations import Activation, choose_activation, read_cross_encoder
from udfs.tasks.scores import SCORE_FIELDS, ScoringOptions, labels_option, pool_chunks, score_columns
from udfs.text.pair_tokenizing import PairTokenizer, Truncation
from udfs.text.pairs import split_pairs
from udfs.text.templates import is_template
from udfs.text.tokenizing import Tokenized, Tokenizer, make_tokenizer

_HEADS = ("ForSequenceClassification", "ForTokenClassification")


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions(ScoringOptions):
    """What text-classification takes."""

    task: ClassVar[str] = "text-classification"

    text_pair: str | None = option(
        None,
        "The second text of a pair, of which `text` is the first: a column's name or a template. For cross-encoders, "
        "rerankers (the query is the first) and NLI models (the premise is). A row fails as `empty_input` if either is "
        "null or blank.",
        for_engine=False,
    )
    truncation: Truncation = option(
        "longest_first",
        "Which text of a pair that is too long is cut, or read in chunks: `only_first`, `only_second`, or whichever is "
        "longer (`longest_first`).",
        for_engine=False,
    )
    activation: Activation | None = option(
        None,
        "What makes scores of logits: `none`, `sigmoid` or `softmax`. Without it, of a text what transformers' "
        "pipeline takes; of a pair, as sentence-transformers' `CrossEncoder`, what the model's files name, else "
        "`sigmoid` for one label and `none` for several.",
        for_engine=False,
    )
    labels: tuple[str, ...] = labels_option()

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        yield from list_problems("labels", self.labels)
        if self.labels and spec.endpoint is None:
            yield "labels are those that the model was trained on; to choose your own, take zero-shot-classification"
        if self.text_pair is not None and not self.text_pair.strip():
            yield "text_pair is blank; give a column's name or a template"
        if self.text_pair is None and self.truncation != "longest_first":
            yield "truncation says which text of a pair is cut; it needs a text_pair"


class TextClassification:
    """A sequence classifier of texts, or of pairs of them.

    Source: transformers, `TextClassificationPipeline`; of pairs sentence-transformers, `CrossEncoder`.
    """

    fields = SCORE_FIELDS
    units_per_text = 1
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec[TextClassificationOptions], files: ModelFiles) -> None:
        check_is_classifier(files, spec.task)
        self._spec, self._files = spec, files
        self.labels = read_labels(files)
        check_labels_differ(files, self.labels)
        self._pairs = reads_pairs(spec)
        if self._pairs:
            check_modules(files)
            check_settings(files)
        asked = spec.options.activation
        self._activate = choose_activation(files, labels=len(self.labels), pairs=self._pairs, asked=asked)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files)

    @cached_property
    def pair_tokenizer(self) -> PairTokenizer:
        return make_pair_tokenizer(self._spec, self._files)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.pair_tokenizer(*split_pairs(texts)) if self._pairs else self.tokenizer(texts)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        scores = self._activate(outputs)
        return score_columns(pool_chunks(scores, tokenized, self._spec.options), self.labels)


def reads_pairs(spec: ScoreSpec[Any]) -> bool:
    """A row is two texts that the model reads together; as one string, as `udfs.text.pairs` writes it."""
    return isinstance(spec.options, TextClassificationOptions) and spec.options.text_pair is not None


def name_texts(spec: ScoreSpec[Any]) -> tuple[str, ...]:
    """The two columns that are a pair's texts by themselves; none where a template makes one, or there are no pairs."""
    names = (spec.template or "text", str(spec.options.text_pair)) if reads_pairs(spec) else ()
    return () if any(map(is_template, names)) else names


def make_pair_tokenizer(spec: ScoreSpec[TextClassificationOptions], files: ModelFiles) -> PairTokenizer:
    """The tokenizer that a spec of pairs asks for, with the prompt that a `CrossEncoder` puts before first texts."""
    told = read_cross_encoder(files)
    return PairTokenizer(
        files,
        max_tokens=spec.max_tokens,
        overflow=spec.overflow,
        truncation=spec.options.truncation,
        chunk_overlap=spec.chunk_overlap,
        before=(told.get("prompts") or {}).get(told.get("default_prompt_name") or "") or "",
        lowercase=bool(read_sentence_config(files).get("do_lower_case")),
    )


def check_modules(files: ModelFiles) -> None:
    """Refuse a cross-encoder whose scores are made by more than its transformer: they would be others."""
    if files.modules:
        named = ", ".join(kind for kind, _ in files.modules)
        raise ModelError(
            f"model {files.name!r} is a cross-encoder with {named} after its transformer, which gristmill does not "
            "run; use a …ForSequenceClassification without them"
        )


def check_ranks(spec: ScoreSpec[Any]) -> None:
    """Refuse to rank by a model of several labels: which of them says that a document fits is not told.

    Raises:
        ModelError: It has.
    """
    labels = read_labels(open_model_of(spec))
    if len(labels) > 1:
        raise ModelError(
            f"model {spec.model!r} gives {len(labels)} labels, {', '.join(labels[:3])}, …; to rank takes one. Use "
            "`classify` with text_pair, and rank by the label that is meant"
        )


def check_is_classifier(files: ModelFiles, task: str) -> None:
    """Refuse a model without a classification head: transformers would give it a random one."""
    kinds = files.config.get("architectures") or ["an unnamed architecture"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        writes = any(kind.endswith("ForCausalLM") for kind in kinds)
        advice = " (it writes; take the version of it that classifies, or text-generation with choices)"
        raise ModelError(
            f"model {files.name!r} is {', '.join(kinds)}, which has no classification head; "
            f"{task} needs a …ForSequenceClassification{advice if writes else ''}"
        )


def check_labels_differ(files: ModelFiles, labels: Sequence[str]) -> None:
    """Refuse labels of one name: which of them is meant, an answer could not tell.

    Raises:
        ModelError: Two have.
    """
    again = next((number for number, label in enumerate(labels) if labels.index(label) < number), None)
    if again is not None:
        label = labels[again]
        raise ModelError(
            f"model {files.name!r} has the label {label!r:.100} twice, as {labels.index(label)} and {again} of "
            "id2label in its config.json; give each a name of its own there, in a copy of the model"
        )


def check_head_fits(spec: ScoreSpec[Any], files: ModelFiles) -> None:
    """Refuse a classifier whose weights are of another number of labels than its config.json says.

    An adapter has its own head, whose shape is told as it loads.

    Raises:
        ModelError: None of its weights, but for embeddings, has so many rows or columns.
    """
    named = any(kind.endswith(_HEADS) for kind in files.config.get("architectures") or ())
    if files.base or not named or spec.task == "feature-extraction" or spec.options.writes:
        return
    labels = read_labels(files)
    shapes = (read_shapes(path).items() for path in files.weights.glob("*.safetensors"))
    sizes = {size for part in shapes for name, shape in part if "embed" not in name for size in shape}
    if len(labels) not in sizes:
        raise ModelError(
            f"model {files.name!r} has {len(labels)} labels by its config.json, and no weights of a head for so many; "
            "mend id2label there, or take the model as it was trained"
        )


def read_labels(files: ModelFiles) -> tuple[str, ...]:
    """The model's labels in the order of its logits.

    Raises:
        ModelError: They are not numbered from 0 on.
    """
    named = files.config.get("id2label") or {}
    count = len(named) or int(files.config.get("num_labels", 2))
    if named and set(map(str, range(count))) != set(named):
        raise ModelError(
            f"model {files.name!r} numbers its labels {', '.join(list(named)[:4])}, … in id2label of its config.json; "
            "number them from 0 on, in the order of its logits"
        )
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count))
