"""A text to one of the labels that the user gives, by a model that never saw them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.prompts import read_prompt
from udfs.spec import ScoreSpec, option
from udfs.tasks.feature_extraction import Embeds
from udfs.tasks.scores import SCORE_FIELDS, ScoringOptions, labels_option, pool_chunks, score_columns, softmax
from udfs.tasks.text_classification import check_is_classifier, check_labels_differ, read_labels
from udfs.text.tokenizing import Tokenized, Tokenizer, make_tokenizer
from udfs.wire.items import Items

# Cosines times this are the logits that sentence-transformers trains with (`MultipleNegativesRankingLoss`, scale).
_COSINE_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(ScoringOptions):
    """What zero-shot-classification takes."""

    task: ClassVar[str] = "zero-shot-classification"

    labels: tuple[str, ...] = labels_option()
    hypothesis_template: str | None = option(
        None,
        "A sentence with `{}` for the label; without it, the one that suits the model's kind: `This example is {}.` "
        "for an NLI model, the label alone for a sentence-embedding model.",
    )
    multi_label: bool = option(False, "Each label on its own, instead of scores that sum to 1.")

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
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


def make_zero_shot(spec: ScoreSpec[ZeroShotOptions], files: ModelFiles) -> ZeroShotByEntailment | ZeroShotBySimilarity:
    """By entailment with an NLI model, by similarity with a sentence-embedding model.

    Raises:
        ModelError: A classifier that was trained on labels of its own.
    """
    kinds = files.config.get("architectures") or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return ZeroShotByEntailment(spec, files)
    return ZeroShotBySimilarity(spec, files)


class ZeroShotByEntailment:
    """Does the text entail "This example is LABEL."? One pair of texts for each label.

    Source: Yin et al., 2019, "Benchmarking Zero-shot Text Classification"; transformers,
    `ZeroShotClassificationPipeline`.
    """

    fields = SCORE_FIELDS
    per_token = False
    generates = False

    def __init__(self, spec: ScoreSpec[ZeroShotOptions], files: ModelFiles) -> None:
        check_is_classifier(files, spec.task)
        self._spec, self._files, self._options = spec, files, spec.options
        self.units_per_text = len(spec.options.labels)
        self._hypotheses = _hypotheses(spec.options, "This example is {}.")
        check_labels_differ(files, read_labels(files))
        names = [label.lower() for label in read_labels(files)]
        entailment = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
        if entailment is None or len(names) < 2:
            raise ModelError(
                f"model {files.name!r} classifies into {', '.join(read_labels(files))}; zero-shot-classification needs "
                "an NLI model (a label `entailment`) or a sentence-embedding model"
            )
        others = [i for i in range(len(names)) if i != entailment]  # two-way models call it `not_entailment`
        contradiction = next((i for i in others if names[i].startswith("contra")), others[0])
        self._entailment, self._against = [entailment], [contradiction, entailment]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        made = make_tokenizer(self._spec, self._files)
        longest = int(made.count_pairs("", self._hypotheses).max())
        if longest >= made.max_tokens:
            raise ModelError(f"the longest label takes {longest} of max_tokens = {made.max_tokens}: no room for a text")
        return made

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts, self._hypotheses)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        # a label on its own is weighed against its contradiction, several share one unit of probability
        alone = self._options.multi_label or self.units_per_text == 1
        entailment = outputs[:, self._entailment]
        if alone:
            entailment = softmax(outputs[:, self._against])[:, 1:]
        by_label = pool_chunks(entailment, tokenized, self._options).reshape(-1, self.units_per_text)
        return score_columns(by_label if alone else softmax(by_label), self._options.labels)


class ZeroShotBySimilarity(Embeds):
    """How near is the text's vector to the label's? One item a text, whatever the number of labels.

    Scores are the softmax of the scaled cosines; with `multi_label`, the cosine itself, not below 0.
    """

    fields = SCORE_FIELDS

    def __init__(self, spec: ScoreSpec[ZeroShotOptions], files: ModelFiles) -> None:
        super().__init__(spec, files, prompt=read_prompt(files))
        self._options = spec.options

    def label_items(self) -> Items:
        """The labels' own tokens, an item each, for the engine.

        Raises:
            ModelError: A label is too long.
        """
        items = self.tokenize(list(_hypotheses(self._options, "{}"))).items
        if len(items) != len(self._options.labels):  # too long under `fail` has no item, under `chunk` several
            raise ModelError("a label is longer than max_tokens allows")
        return items

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        cosines = pool_chunks(outputs, tokenized, self._options)
        scores = np.maximum(cosines, 0) if self._options.multi_label else softmax(_COSINE_SCALE * cosines)
        return score_columns(scores, self._options.labels)


def _hypotheses(options: ZeroShotOptions, default: str) -> list[str]:
    return [(options.hypothesis_template or default).replace("{}", label) for label in options.labels]
