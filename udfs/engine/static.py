"""A model without a transformer: a table of tokens' vectors, looked up and averaged."""

from __future__ import annotations

import os
import platform

import numpy as np

from udfs.engine.batch import BatchMaker
from udfs.engine.forward import load_forward
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.wire.items import Items

STATIC_TOKENS = 32768  # of a micro-batch: so many take milliseconds, fewer would wait for Python's lock


class StaticModel:
    """A static model that is loaded for a task; what lanes run.

    It is on the CPU, also where there is a GPU: to send the tokens there takes longer than to look them up. A table is
    in float32 unless another precision is asked for, since nothing is multiplied.

    Args:
        spec: Names the task and the precision.
        files: The model.

    Attributes:
        name: `host:pid:cpu/precision/packed`.
        pad_multiple: 0, nothing is padded.
        width: Of a row of outputs; known once something has run.

    Raises:
        ModelError: The model does not load, or does not do the task.
    """

    pad_multiple = 0

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        precision = "float32" if spec.precision == "auto" else spec.precision
        self._make_batch = BatchMaker("cpu", packed=True)
        task = make_task(spec, files)
        self._forward = load_forward(task, files, device="cpu", precision=precision, make_batch=self._make_batch)
        self.name = f"{platform.node()}:{os.getpid()}:cpu/{precision}/packed"
        self.width = 0
        one = Items(np.zeros(1, dtype=np.int32), np.array([0, 1]))
        self.run(one, np.array([0]))

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) float32 in the order of `indices`, and (B,) tokens of each item."""
        import torch

        with torch.inference_mode():
            outputs = self._forward(self._make_batch(items, indices)).float().numpy()
        self.width = outputs.shape[1]
        return outputs, items.lengths[indices]
