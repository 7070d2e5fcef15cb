"""A loaded model on its device: a micro-batch of items goes in, an output an item comes out."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.engine.batch import BatchMaker
from udfs.engine.cutting import split_equal
from udfs.engine.forward import load_forward
from udfs.errors import EngineError
from udfs.model.attention import can_pack
from udfs.model.files import ModelFiles, open_model
from udfs.model.limits import first_position, resolve_max_tokens
from udfs.model.loading import leave_masks_unread
from udfs.model.memory import free_forgotten, is_out_of_memory
from udfs.model.precision import DevicePlan, plan_device
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.wire.items import Items

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.forward import Forward

# These mix padding into their answers whatever the mask says: their micro-batches hold items of one length.
_IGNORES_MASK = {"canine", "convbert", "fnet"}
_LIKE_ALONE = 0.05  # how far, of the largest output, half precision may carry packed from alone


class Model:
    """A model that is loaded for a task.

    Args:
        spec: Names the task, the model and the precision.
        gpu: Spark's address of the GPU that this process sees as its only one; None takes the first, or the CPU.
        packed: False pads where the model could be packed; for comparisons.

    Attributes:
        name: `host:pid:device/precision/packed`, or `/padded`; the device by Spark's address.
        pad_multiple: Lengths are rounded up to a multiple of it; 0 where micro-batches are packed.
        max_tokens: The longest item.
        per_token: Outputs are a row a token, not a row an item.
        width: Of a row of outputs; known once something has run.

    Raises:
        ModelError: The model does not load, or is not of the task's kind.
        EngineError: Spark gave a GPU, but torch sees none.
    """

    def __init__(self, spec: ScoreSpec, *, gpu: str | None = None, packed: bool = True) -> None:
        files = open_model(spec.model, spec.revision)
        plan = plan_device(spec.precision, gpu=gpu)
        self.device = plan.device
        self.max_tokens = resolve_max_tokens(files, spec.max_tokens)
        self._task = make_task(spec, files)
        self.per_token = self._task.per_token
        self._equal_lengths = files.config.get("model_type") in _IGNORES_MASK
        self._idle_streams: list[Any] = []
        self.width = 0
        packed = packed and can_pack(files.config, device=plan.device, precision=plan.precision)
        self._forward, self._make_batch = self._load(files, plan, packed=packed)
        if packed and (reason := self._why_not_packed()):
            print(f"gristmill: {spec.model} is padded, since {reason}", file=sys.stderr)
            packed = False
            del self._forward  # its weights go before others come
            free_forgotten()
            self._forward, self._make_batch = self._load(files, plan, packed=False)
        self.pad_multiple = self._make_batch.pad_multiple
        shown = f"cuda:{gpu}" if gpu is not None and self.on_cuda else plan.device
        way = "packed" if packed else "padded"
        self.name = f"{platform.node()}:{os.getpid()}:{shown}/{plan.precision}/{way}"

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run a micro-batch of some of the items.

        Returns:
            (B, D) float32 in the order of `indices`, or (t, D) if the task answers by token; and (B,) what each item
            was padded to.

        Raises:
            EngineError: The model gave more or fewer outputs than items.
        """
        parts = split_equal(items.lengths[indices]) if self._equal_lengths else [np.arange(len(indices))]
        done = [self._run(items, indices[part]) for part in parts]
        where = np.concatenate(parts)
        outputs, widths = np.concatenate([values for values, _ in done]), np.concatenate([w for _, w in done])
        if len(parts) > 1:
            outputs, widths = self._in_order(outputs, items.lengths[indices], where), widths[np.argsort(where)]
        self.width = outputs.shape[1]
        return outputs, widths

    def _load(self, files: ModelFiles, plan: DevicePlan, *, packed: bool) -> tuple[Forward, BatchMaker]:
        # Tensor Cores want 8; on a CPU it cost short texts 15 %.
        maker = BatchMaker(
            plan.device,
            packed,
            pad_multiple=0 if packed else 8 if self.on_cuda and not self._equal_lengths else 1,
            pad_id=files.config.get("pad_token_id") or 0,
            first_position=first_position(files.config),
        )
        if self.on_cuda:
            leave_masks_unread()
        forward = load_forward(self._task, files, device=plan.device, precision=plan.precision, make_batch=maker)
        if self.on_cuda:
            _finish_loading()
        return forward, maker

    def _run(self, items: Items, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode(), self._stream() as done:
            batch = self._make_batch(items, indices)
            outputs = _fetch(self._forward(batch).float(), done)
        lengths = items.lengths[indices]
        expected = int(lengths.sum()) if self.per_token else len(indices)
        if len(outputs) != expected:
            raise EngineError(f"the model gave {len(outputs)} outputs for {expected} items")
        return outputs, lengths if self._make_batch.packed else np.full(len(indices), batch.ids.shape[1])

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """A CUDA stream that no other lane uses now, so that one computes while another copies; yields its event.

        As many are made as lanes ever run at once: memory that one has used is not free for another.
        """
        import torch

        if not self.on_cuda:
            yield None
            return
        try:
            stream, done = self._idle_streams.pop()
        except IndexError:
            stream, done = torch.cuda.Stream(), torch.cuda.Event(blocking=True)
        try:
            with torch.cuda.stream(stream):
                yield done
        finally:
            self._idle_streams.append((stream, done))

    def _in_order(self, outputs: np.ndarray, lengths: np.ndarray, where: np.ndarray) -> np.ndarray:
        rows = lengths[where] if self.per_token else np.ones_like(where)
        ends = np.concatenate([[0], np.cumsum(rows)])
        return np.concatenate([outputs[ends[i] : ends[i + 1]] for i in np.argsort(where)])

    def _why_not_packed(self) -> str:
        """What keeps three short items from the outputs that they have alone, in the version that is installed."""
        counts = np.minimum([5, 3, 3], self.max_tokens)
        ids = np.arange(3, 3 + counts.sum(), dtype=np.int32) % 7 + 3
        items = Items(ids, np.concatenate([[0], np.cumsum(counts)]))
        try:
            together, _ = self._run(items, np.arange(3))
        except (ValueError, TypeError, RuntimeError) as error:  # it takes no layout, or has no kernel here
            if is_out_of_memory(error):
                raise
            return f"packed it does not run: {error}"
        alone = np.concatenate([self._run(items, np.array([i]))[0] for i in range(3)])
        same = np.abs(together - alone).max() <= _LIKE_ALONE * np.abs(alone).max() + 1e-6
        return "" if same else "packed it is not the same as alone"


def _fetch(outputs: Tensor, done: Any) -> np.ndarray:
    """Outputs in the host's memory. On CUDA the lane waits for its own copy alone, and without Python's lock."""
    import torch

    if done is None:
        return outputs.numpy()
    pinned = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
    pinned.copy_(outputs, non_blocking=True)
    done.record()
    done.synchronize()
    return pinned.numpy()


def _finish_loading() -> None:
    """Weights, and what a task has computed of them, are there before a lane's stream reads them."""
    import torch

    torch.cuda.synchronize()
