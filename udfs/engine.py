"""The engine: one loaded model on one device, and the loop that feeds it micro-batches.

It knows nothing of rows: ragged items go in, one output an item comes out, in the order of the items.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from udfs.batching import Items, micro_batches, pad
from udfs.errors import EngineError
from udfs.models import open_model
from udfs.precision import plan_device
from udfs.spec import ScoreSpec
from udfs.threads import task_threads

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How micro-batches are cut on a kind of device.

    Args:
        max_batch_tokens: Tokens of a micro-batch, padding included.
        min_batch_tokens: Tokens from which a micro-batch rather ends than pads.
        pad_multiple: Lengths are rounded up to a multiple of it.
    """

    max_batch_tokens: int
    min_batch_tokens: int
    pad_multiple: int


# Measured with all-MiniLM-L6-v2 in bfloat16 on two cores: 2,048 tokens are best for short and mixed texts alike,
# 8,192 are 15 % slower, and rounding lengths up to 8, which Tensor Cores want, costs short texts 15 % on a CPU.
_CPU = Budget(max_batch_tokens=2048, min_batch_tokens=384, pad_multiple=1)
_CUDA = Budget(max_batch_tokens=32768, min_batch_tokens=16384, pad_multiple=8)


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


@dataclass(frozen=True)
class Outputs:
    """What the engine answers to a window's items.

    Args:
        values: (N, D) float32, row i for item i.
        padded_tokens: (N,) int64, width of the micro-batch that item i went through.
        engine: `host:pid:device/precision`.
    """

    values: np.ndarray
    padded_tokens: np.ndarray
    engine: str


class Engine:
    """A loaded model and its token budget.

    Args:
        spec: Names the task, the model and the precision.
        gpu: Address of the GPU that Spark gave; None takes the first one, or the CPU.
        threads: CPU threads of the forward pass; None takes what Spark gives the task.

    Raises:
        ModelError: The model does not load, or is not of the task's kind.
    """

    def __init__(self, spec: ScoreSpec, *, gpu: str | None = None, threads: int | None = None) -> None:
        import torch

        from udfs.tasks import make_task

        torch.set_num_threads(threads or task_threads())
        files = open_model(spec.model, spec.revision)
        self.plan = plan_device(spec.precision, gpu=gpu)
        self.name = f"{platform.node()}:{os.getpid()}:{self.plan.device}/{self.plan.precision}"
        self._forward = make_task(spec, files).load(self.plan.device, self.plan.precision)
        self.budget = _CUDA if self.plan.device.startswith("cuda") else _CPU
        if spec.max_batch_tokens:
            self.budget = replace(self.budget, max_batch_tokens=spec.max_batch_tokens)
        self._pad_id = files.config.get("pad_token_id") or 0

    def forward(self, items: Items) -> Outputs:
        """Run every item through the model once.

        Outputs stay on the device until the last micro-batch is queued; they are fetched together.

        Raises:
            EngineError: The model gave more or fewer outputs than items.
        """
        import torch

        padded = np.zeros(len(items), dtype=np.int64)
        if not len(items):
            return Outputs(np.zeros((0, 1), dtype=np.float32), padded, self.name)
        batches = list(micro_batches(items.lengths, **asdict(self.budget)))
        order = np.concatenate(batches)
        outputs = []
        with torch.inference_mode():
            for indices in batches:
                batch = self._make_batch(items, indices)
                padded[indices] = batch.ids.shape[1]
                outputs.append(self._forward(batch))
            gathered = torch.cat(outputs).float().cpu().numpy()
        if len(gathered) != len(items) or (np.bincount(order, minlength=len(items)) != 1).any():
            raise EngineError(f"the engine gave {len(gathered)} outputs for {len(items)} items")
        values = np.empty_like(gathered)
        values[order] = gathered
        return Outputs(values, padded, self.name)

    def _make_batch(self, items: Items, indices: np.ndarray) -> Batch:
        import torch

        def to_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.plan.device, non_blocking=True)

        ids, real = pad(items.ids, items.offsets, indices, pad_multiple=self.budget.pad_multiple, fill=self._pad_id)
        types = None
        if items.type_ids is not None:
            types, _ = pad(items.type_ids, items.offsets, indices, pad_multiple=self.budget.pad_multiple, fill=0)
        return Batch(
            to_device(ids),
            None if real.all() else to_device(real),
            None if types is None else to_device(types),
        )
