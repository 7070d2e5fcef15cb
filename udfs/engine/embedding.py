"""The engine half of embedding: token states go through a model's modules, and become vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from udfs.engine.batch import Batch
from udfs.engine.pooling import pool
from udfs.model.embedding import TOKENS, VECTOR, Pool, Step
from udfs.model.layers import load_layer
from udfs.tasks.feature_extraction import Embeds

if TYPE_CHECKING:
    from torch import Tensor

    Apply = Callable[[dict[str, Tensor], Batch], None]


def make_steps(task: Embeds, *, device: str) -> Callable[[Tensor, Batch], Tensor]:
    """What follows the transformer, with its weights on the device.

    Returns:
        A function from token states, (1, T, H) packed or (B, S, H) padded, or from the (B, H) means of a static model,
        and the micro-batch, to (B, D) vectors.

    Raises:
        ModelError: Weights of a module do not load.
    """
    embedding = task.embedding
    skip = task.tokenizer.count_prompt() if embedding.leaves_prompt_out else 0
    steps = [_make_step(step, device, skip) for step in embedding.steps]

    def finish(states: Tensor, batch: Batch) -> Tensor:
        features = {VECTOR if states.dim() == 2 else TOKENS: states}
        for step in steps:
            step(features, batch)
        return features[VECTOR]

    return finish


def _make_step(step: Step, device: str, skip: int) -> Apply:
    if isinstance(step, Pool):

        def pool_tokens(features: dict[str, Tensor], batch: Batch) -> None:
            features[VECTOR] = pool(features[TOKENS], batch, how=step, skip=skip)

        return pool_tokens
    source, target = getattr(step, "source", VECTOR), getattr(step, "target", VECTOR)
    layer = load_layer(step, device=device)

    def apply(features: dict[str, Tensor], batch: Batch) -> None:
        if source in features:
            features[target] = layer(features[source])

    return apply
