"""The engine half of the tasks whose answers are vectors: a model is loaded, and run on micro-batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.engine.batch import Batch, BatchMaker, Packed
from udfs.engine.cutting import split_equal
from udfs.engine.embedding import make_steps
from udfs.errors import EngineError
from udfs.model.attention import gather_for_head
from udfs.model.files import ModelFiles
from udfs.model.heads import find_last_token_head, skipped_token
from udfs.model.layers import load_table
from udfs.model.loading import load_transformer
from udfs.tasks.feature_extraction import Embeds, FeatureExtraction
from udfs.tasks.task import Task
from udfs.tasks.text_classification import TextClassification
from udfs.tasks.token_classification import TokenClassification
from udfs.tasks.zero_shot_classification import ZeroShotByEntailment, ZeroShotBySimilarity

if TYPE_CHECKING:
    from torch import Tensor


# The encoder alone embeds, and its states need no decoder: by a class of transformers that has no other part, or as a
# part of the whole model. sentence-transformers 6.2 loads MarianEncoder and the like by themselves, whose names of
# weights differ from the whole model's, and embeds by random ones: only the first two can be held to it.
_ENCODERS = {"longt5": "LongT5EncoderModel", "switch_transformers": "SwitchTransformersEncoderModel"}
_ENCODE_APART = frozenset(
    (
        *("blenderbot", "blenderbot-small", "m2m_100", "marian", "pegasus", "pegasus_x"),
        *("prophetnet", "t5gemma", "t5gemma2"),
    )
)


@dataclass(frozen=True)
class Forward:
    """A loaded model with its task's last step.

    Args:
        transformer: transformers' model; None of a static one.
        run: From a micro-batch to outputs.
        counted: A token of which all items of a micro-batch need the same number: a head finds its place by it.
    """

    transformer: Any
    run: Callable[[Batch], Tensor]
    counted: int | None = None

    def __call__(self, batch: Batch) -> Tensor:
        return self.run(batch)


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


def _embed(task: Embeds, files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    finish = make_steps(task, device=device)
    if files.is_static:
        return _look_up(load_table(files, device=device, precision=precision), finish)
    kind = _name_class(files)
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)
    if kind == "AutoModel" and files.config.get("model_type") in _ENCODE_APART:
        model = model.get_encoder()

    def forward(batch: Batch) -> Tensor:
        return finish(model(**batch.inputs()).last_hidden_state, batch)

    return Forward(model, forward)


def _look_up(table: Tensor, finish: Callable[[Tensor, Batch], Tensor]) -> Forward:
    """Means of tokens' vectors out of a table; micro-batches are packed."""
    import torch

    def forward(batch: Batch) -> Tensor:
        if not isinstance(batch, Packed):
            raise EngineError("a static model runs packed micro-batches alone")
        means = torch.nn.functional.embedding_bag(batch.ids[0], table, batch.layout.starts.long(), mode="mean")
        return finish(means, batch)

    return Forward(None, forward)


def _name_class(files: ModelFiles) -> str:
    """Of T5 and its kin the encoder embeds, alone; of others, as BART, the whole model, as in sentence-transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    kind = str(files.config.get("model_type"))
    if kind in _ENCODERS or kind in _ENCODE_APART:
        return _ENCODERS.get(kind, "AutoModel")
    if files.config.get("is_encoder_decoder"):
        return "AutoModelForTextEncoding" if kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else "AutoModel"
    return "AutoModelForTextEncoding" if "T5EncoderModel" in (files.config.get("architectures") or []) else "AutoModel"


def _compare(
    task: ZeroShotBySimilarity, files: ModelFiles, device: str, precision: str, make_batch: BatchMaker
) -> Forward:
    """Cosines of each text's vector with the labels'."""
    import torch

    embed = _embed(task, files, device, precision, make_batch)
    items = task.label_items()
    with torch.inference_mode():  # of one length each: some models read padding
        found = [(part, embed(make_batch(items, part))) for part in split_equal(items.lengths)]
        order = torch.from_numpy(np.argsort(np.concatenate([part for part, _ in found]))).to(device)
        labels = torch.nn.functional.normalize(torch.cat([vectors for _, vectors in found])[order], dim=1)

    def forward(batch: Batch) -> Tensor:
        return torch.nn.functional.normalize(embed(batch), dim=1) @ labels.T

    return Forward(embed.transformer, forward)


def _classify(files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    """Logits of a sequence classifier."""
    kind = "AutoModelForSequenceClassification"
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)
    if (head := find_last_token_head(model)) is not None:
        return _classify_last(model, head)
    if make_batch.packed:
        gather_for_head(model)
    as_read = _reader(model)

    def forward(batch: Batch) -> Tensor:
        return model(**as_read(batch).inputs()).logits

    # BART, T5 and their kin read the state of the last end token, and find it by their number
    end = getattr(model.config, "eos_token_id", None)
    return Forward(model, forward, counted=end if model.config.is_encoder_decoder and isinstance(end, int) else None)


def _reader(model: Any) -> Callable[[Batch], Batch]:
    """A micro-batch as a model takes it: some know no token types, though their tokenizers make them."""
    reads_types = "token_type_ids" in inspect.signature(model.forward).parameters
    return lambda batch: batch if reads_types else replace(batch, type_ids=None)


def _classify_last(model: Any, head: Callable[[Tensor], Tensor]) -> Forward:
    skipped, as_read = skipped_token(model), _reader(model.base_model)

    def forward(batch: Batch) -> Tensor:
        states = model.base_model(**as_read(batch).inputs()).last_hidden_state
        return head(batch.last_tokens(states, skipped=skipped))

    return Forward(model, forward)


def _tag(files: ModelFiles, device: str, precision: str, make_batch: BatchMaker) -> Forward:
    """(t, labels) logits, a row a real token."""
    kind = "AutoModelForTokenClassification"
    model = load_transformer(kind, files, device=device, precision=precision, packed=make_batch.packed)

    def forward(batch: Batch) -> Tensor:
        return batch.real_tokens(model(**batch.inputs()).logits)

    return Forward(model, forward)
