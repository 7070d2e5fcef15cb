"""The engine half of the tasks whose answers are vectors: a model is loaded, and run on micro-batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from udfs.engine.batch import Batch, BatchMaker
from udfs.engine.pooling import pool
from udfs.errors import EngineError
from udfs.model.attention import gather_for_head
from udfs.model.files import ModelFiles
from udfs.model.loading import load_transformer
from udfs.tasks.feature_extraction import FeatureExtraction
from udfs.tasks.task import Task
from udfs.tasks.text_classification import TextClassification
from udfs.tasks.token_classification import TokenClassification
from udfs.tasks.zero_shot_classification import ZeroShotByEntailment, ZeroShotBySimilarity

if TYPE_CHECKING:
    from torch import Tensor

    Forward = Callable[[Batch], Tensor]


def load_forward(task: Task, files: ModelFiles, *, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    """Load a task's model for packed or padded micro-batches, as `make_batch` makes them.

    Returns:
        A function from micro-batch to (B, D) outputs on the device, in the batch's order; (t, D), a row a real token,
        of a task that answers by token.

    Raises:
        ModelError: The model does not load.
        EngineError: The task's answers are no vectors; `udfs.generation` writes them.
    """
    match task:
        case ZeroShotBySimilarity():
            return _compare(task, files, device, precision, make_batch)
        case FeatureExtraction():
            return _embed(task, files, device, precision, make_batch)
        case TextClassification() | ZeroShotByEntailment():
            return _classify(files, device, precision, make_batch)
        case TokenClassification():
            return _tag(files, device, precision, make_batch)
    raise EngineError(f"{type(task).__name__} has no micro-batches of vectors; the engine writes for it")


def _embed(task: FeatureExtraction, files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    # of T5 and its kin, the encoder alone
    encoder = files.config.get("is_encoder_decoder") or "T5EncoderModel" in (files.config.get("architectures") or [])
    kind = "AutoModelForTextEncoding" if encoder else "AutoModel"
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)

    def forward(batch: Batch) -> Tensor:
        return pool(model(**batch.inputs()).last_hidden_state, batch, pooling=task.pooling)

    return forward


def _compare(
    task: ZeroShotBySimilarity, files: ModelFiles, device: str, precision: str, make_batch: BatchMaker
) -> Forward:
    """Cosines of each text's vector with the labels'."""
    import torch

    embed = _embed(task, files, device, precision, make_batch)
    items = task.label_items()
    with torch.inference_mode():
        labels = torch.nn.functional.normalize(embed(make_batch(items, np.arange(len(items)))), dim=1)

    def forward(batch: Batch) -> Tensor:
        return torch.nn.functional.normalize(embed(batch), dim=1) @ labels.T

    return forward


def _classify(files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    """Logits of a sequence classifier."""
    kind = "AutoModelForSequenceClassification"
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)
    if make_batch.packed:
        gather_for_head(model)
    reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(batch: Batch) -> Tensor:
        read = batch if reads_types else replace(batch, type_ids=None)
        return model(**read.inputs()).logits

    return forward


def _tag(files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    """(t, labels) logits, a row a real token."""
    kind = "AutoModelForTokenClassification"
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)

    def forward(batch: Batch) -> Tensor:
        return batch.real_tokens(model(**batch.inputs()).logits)

    return forward
