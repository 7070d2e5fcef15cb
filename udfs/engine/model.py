"""A loaded model on its device: a micro-batch of items goes in, an output an item comes out."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from udfs.batching import Items, pad
from udfs.errors import EngineError
from udfs.models import open_model
from udfs.precision import plan_device
from udfs.spec import ScoreSpec
from udfs.tokenizing import resolve_max_tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch on the device.

    Args:
        ids: (B, S) int64 token ids.
        real: (B, S) bool, false where a token is padding; None where none is, so that no mask is made.
        type_ids: (B, S) int64 segments, for pairs of texts whose model tells them apart.
    """

    ids: Tensor
    real: Tensor | None
    type_ids: Tensor | None

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a transformers model."""
        inputs = {"input_ids": self.ids}
        if self.real is not None:
            inputs["attention_mask"] = self.real.long()
        if self.type_ids is not None:
            inputs["token_type_ids"] = self.type_ids
        return inputs


class Model:
    """A model that is loaded for a task.

    Args:
        spec: Names the task, the model and the precision.
        gpu: Spark's address of the GPU that this process sees as its only one; None takes the first, or the CPU.

    Attributes:
        name: `host:pid:device/precision`, the device by Spark's address.
        pad_multiple: Lengths are rounded up to a multiple of it.
        max_tokens: The longest item.
        width: Of an item's outputs; known once something has run.

    Raises:
        ModelError: The model does not load, or is not of the task's kind.
        EngineError: Spark gave a GPU, but torch sees none.
    """

    def __init__(self, spec: ScoreSpec, *, gpu: str | None = None) -> None:
        from udfs.tasks import make_task

        files = open_model(spec.model, spec.revision)
        plan = plan_device(spec.precision, gpu=gpu)
        self.device = plan.device
        shown = f"cuda:{gpu}" if gpu is not None and self.on_cuda else plan.device
        self.name = f"{platform.node()}:{os.getpid()}:{shown}/{plan.precision}"
        # Tensor Cores want 8; on a CPU it cost short texts 15 %.
        self.pad_multiple = 8 if self.on_cuda else 1
        self.max_tokens = resolve_max_tokens(files, spec.max_tokens)
        self._forward = make_task(spec, files).load(plan.device, plan.precision)
        self.width = 0
        self._pad_id = files.config.get("pad_token_id") or 0

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, int]:
        """Run a micro-batch of some of the items.

        Returns:
            (B, D) float32 in the order of `indices`, and the width that they were padded to.

        Raises:
            EngineError: The model gave more or fewer outputs than items.
        """
        import torch

        with torch.inference_mode():
            batch = self._make_batch(items, indices)
            outputs = self._forward(batch).float().cpu().numpy()
        if len(outputs) != len(indices):
            raise EngineError(f"the model gave {len(outputs)} outputs for {len(indices)} items")
        self.width = outputs.shape[1]
        return outputs, batch.ids.shape[1]

    def _make_batch(self, items: Items, indices: np.ndarray) -> Batch:
        import torch

        def to_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        ids, real = pad(items.ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=self._pad_id)
        types = None
        if items.type_ids is not None:
            types, _ = pad(items.type_ids, items.offsets, indices, pad_multiple=self.pad_multiple, fill=0)
        return Batch(
            to_device(ids),
            None if real.all() else to_device(real),
            None if types is None else to_device(types),
        )
