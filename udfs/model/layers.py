"""What sentence-transformers' modules compute, with their weights on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from udfs.errors import ModelError
from udfs.model.embedding import WEIGHTS, Dense, LayerNorm, Normalize, table_shape
from udfs.model.files import ModelFiles
from udfs.model.memory import is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    Layer = Callable[[Tensor], Tensor]


def load_layer(step: Dense | LayerNorm | Normalize, *, device: str) -> Layer:
    """A function of the last dimension of a tensor, in float32.

    Raises:
        ModelError: Its weights do not load.

    Source: sentence-transformers, `Dense`, `LayerNorm` and `Normalize`.
    """
    import torch
    from torch.nn import functional

    if isinstance(step, Normalize):
        return lambda states: functional.normalize(states.float(), dim=-1)
    held = _load(step.folder / WEIGHTS, device)
    if isinstance(step, LayerNorm):
        return lambda states: functional.layer_norm(
            states.float(), (step.width,), held["norm.weight"], held["norm.bias"]
        )
    activate = getattr(torch.nn, step.activation)()
    bias = held["linear.bias"] if step.bias else None

    def dense(states: Tensor) -> Tensor:
        states = states.float()
        made = activate(functional.linear(states, held["linear.weight"], bias))
        if not step.residual:
            return made
        return made + (states if step.inputs == step.outputs else functional.linear(states, held["residual.weight"]))

    return dense


def load_table(files: ModelFiles, *, device: str, precision: str) -> Tensor:
    """The vector of each token of a static model.

    Returns:
        (tokens, D); where the files share rows between tokens, and weigh these, that is done.

    Raises:
        ModelError: It does not load, or has not a row for each token of the tokenizer.

    Source: sentence-transformers, `StaticEmbedding`.
    """
    import torch

    rows, _ = table_shape(files)
    held = _load(files.transformer / WEIGHTS, "cpu", keep={"mapping"})
    table = held.get("embedding.weight")
    if table is None:
        table = held["embeddings"]
        if "mapping" in held:
            places = held["mapping"].long()
            if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(table):
                raise ModelError(f"model {files.name!r}: its mapping names rows that its table of {len(table)} lacks")
            table = table[places]
        if "weights" in held:
            table = table * held["weights"][:, None]
    if len(table) != rows:
        raise ModelError(f"model {files.name!r} has {len(table)} token vectors, and tells of {rows}")
    return table.to(device, getattr(torch, precision)).contiguous()


def _load(path: Path, device: str, keep: frozenset[str] | set[str] = frozenset()) -> dict[str, Tensor]:
    """Tensors of a file, in float32 but for those that are to keep their type."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: held if name in keep else held.float() for name, held in load_file(path, device=device).items()}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{path} does not load: {error}") from error
