"""A text to one of the labels that the user gives, by a model that never saw them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from udfs.batching import Items
from udfs.errors import ModelError
from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.feature_extraction import FeatureExtraction
from udfs.tasks.scores import SCORE_FIELDS, pool_chunks, score_columns, softmax
from udfs.tasks.text_classification import check_is_classifier, load_classifier, read_labels
from udfs.tokenizing import Tokenized, Tokenizer, make_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch, BatchMaker
    from udfs.tasks import Forward

# Cosines times this are the logits that sentence-transformers trains with (`MultipleNegativesRankingLoss`, scale).
_COSINE_SCALE = 20.0


def make_zero_shot(spec: ScoreSpec, files: ModelFiles) -> ZeroShotByEntailment | ZeroShotBySimilarity:
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

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        check_is_classifier(files, spec.task)
        self._spec, self._files = spec, files
        self.units_per_text = len(spec.labels)
        self._hypotheses = _hypotheses(spec, "This example is {}.")
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

    def load(self, device: str, precision: str, make_batch: BatchMaker) -> Forward:
        return load_classifier(self._files, device, precision, packed=make_batch.packed)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        # a label on its own is weighed against its contradiction, several share one unit of probability
        alone = self._spec.multi_label or self.units_per_text == 1
        entailment = outputs[:, self._entailment]
        if alone:
            entailment = softmax(outputs[:, self._against])[:, 1:]
        by_label = pool_chunks(entailment, tokenized, self._spec).reshape(-1, self.units_per_text)
        return score_columns(by_label if alone else softmax(by_label), self._spec.labels)


class ZeroShotBySimilarity(FeatureExtraction):
    """How near is the text's vector to the label's? One item a text, whatever the number of labels.

    Scores are the softmax of the scaled cosines; with `multi_label`, the cosine itself, not below 0.
    """

    fields = SCORE_FIELDS

    def load(self, device: str, precision: str, make_batch: BatchMaker) -> Forward:
        import torch

        embed = super().load(device, precision, make_batch)
        items = self._label_items()
        with torch.inference_mode():
            labels = torch.nn.functional.normalize(embed(make_batch(items, np.arange(len(items)))), dim=1)

        def forward(batch: Batch) -> Tensor:
            return torch.nn.functional.normalize(embed(batch), dim=1) @ labels.T

        return forward

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        cosines = pool_chunks(outputs, tokenized, self._spec)
        scores = np.maximum(cosines, 0) if self._spec.multi_label else softmax(_COSINE_SCALE * cosines)
        return score_columns(scores, self._spec.labels)

    def _label_items(self) -> Items:
        items: Items = self.tokenize(list(_hypotheses(self._spec, "{}"))).items
        if len(items) != len(self._spec.labels):  # too long under `fail` has no item, under `chunk` several
            raise ModelError("a label is longer than max_tokens allows")
        return items


def _hypotheses(spec: ScoreSpec, default: str) -> list[str]:
    return [(spec.hypothesis_template or default).replace("{}", label) for label in spec.labels]
