"""A loaded model on its device: a micro-batch of items goes in, an output an item comes out."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.engine.batch import BatchMaker
from udfs.engine.cutting import split_equal
from udfs.engine.forward import load_forward
from udfs.engine.probes import Probes
from udfs.errors import EngineError, ModelError, first_line
from udfs.model.attention import attends_plainly, can_pack
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.limits import first_position, resolve_max_tokens
from udfs.model.loading import leave_masks_unread
from udfs.model.memory import free_forgotten, is_out_of_memory
from udfs.model.precision import DevicePlan, plan_device
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_task
from udfs.tasks.text_classification import reads_pairs
from udfs.wire.items import Items

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.forward import Forward

# These mix padding into their answers whatever the mask says: their micro-batches hold items of one length.
_IGNORES_MASK = {"canine", "convbert", "fnet"}
# How far a micro-batch may carry items from what they are alone: any number, of the largest; and all of them, of their
# norm, where single ones are rounded too far. A text that reads its neighbours is some tens of percent off.
_LIKE_ALONE, _LIKE_ALONE_ROUNDED = 1e-3, 0.1
# What a model raises that takes no layout, or no padding, or has no kernel here.
_CANNOT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    EngineError,
)
_GROUPINGS = ("any", "length", "single")
_TOLD = {"length": "texts of one length together", "single": "one text at a time"}


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
        probes: Items to try it with.
        width: Of a row of outputs; known once something has run.

    Raises:
        ModelError: The model does not load, does not run, or is not of the task's kind.
        EngineError: Spark gave a GPU, but torch sees none.
    """

    def __init__(self, spec: ScoreSpec, *, gpu: str | None = None, packed: bool = True) -> None:
        files = open_model_of(spec)
        plan = plan_device(spec.precision, gpu=gpu)
        self.device = plan.device
        self.max_tokens = resolve_max_tokens(files, spec.max_tokens)
        self._task, self._reads_pairs = make_task(spec, files), reads_pairs(spec)
        self.per_token = self._task.per_token
        self._grouping = "length" if files.config.get("model_type") in _IGNORES_MASK else "any"
        self._idle_streams: list[Any] = []
        self.width = 0
        packed = packed and can_pack(files.config, device=plan.device, precision=plan.precision)
        self._forward, self._make_batch = self._load(files, plan, packed=packed)
        if packed and (reason := self._why_not_packed(plan.precision)):
            print(f"gristmill: {spec.model} is padded, since {reason}", file=sys.stderr)
            packed = False
            del self._forward  # its weights go before others come
            free_forgotten()
            self._forward, self._make_batch = self._load(files, plan, packed=False)
        if not packed:
            self._choose_grouping(spec.model, plan.precision)
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
        parts = self._group(items, indices)
        done = [self._run(items, indices[part], self._make_batch) for part in parts]
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
            pad_multiple=0 if packed else 8 if self.on_cuda and self._grouping == "any" else 1,
            pad_id=files.config.get("pad_token_id") or 0,
            first_position=first_position(files.config),
        )
        if self.on_cuda:
            leave_masks_unread()
        forward = load_forward(self._task, files, device=plan.device, precision=plan.precision, make_batch=maker)
        if self.on_cuda:
            _finish_loading()
        _keep_nothing(forward.transformer)
        self._counted = forward.counted
        pad_id, vocabulary = _read_tokens(forward.transformer)
        self.probes = Probes(
            self._task, files, max_tokens=self.max_tokens, vocabulary=vocabulary, pairs=self._reads_pairs
        )
        return forward, replace(maker, pad_id=pad_id, vocabulary=vocabulary)

    def _group(self, items: Items, indices: np.ndarray) -> list[np.ndarray]:
        """Places in `indices`, in the groups that may run together."""
        if self._grouping == "single":
            return list(np.arange(len(indices))[:, None])
        keys = items.lengths[indices] if self._grouping == "length" else np.zeros(len(indices), dtype=np.int64)
        if self._counted is not None:
            counts = np.add.reduceat(items.ids == self._counted, items.offsets[:-1], dtype=np.int64)
            keys = keys * (1 + counts.max()) + counts[indices]
        elif self._grouping == "any":
            return [np.arange(len(indices))]
        return split_equal(keys)

    def _run(self, items: Items, indices: np.ndarray, make_batch: BatchMaker) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode(), self._stream() as done:
            batch = make_batch(items, indices)
            outputs = _fetch(self._forward(batch).float(), done)
        lengths = items.lengths[indices]
        expected = int(lengths.sum()) if self.per_token else len(indices)
        if len(outputs) != expected:
            raise EngineError(f"the model gave {len(outputs)} outputs for {expected} items")
        return outputs, lengths if make_batch.packed else np.full(len(indices), batch.ids.shape[1])

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

    def _why_not_packed(self, precision: str) -> str:
        """What keeps packed texts from the outputs that transformers has for each alone, in the version installed."""
        items = self.probes.mixed()
        try:
            together, _ = self.run(items, np.arange(len(items)))
        except _CANNOT as error:
            if is_out_of_memory(error):
                raise
            return f"packed it does not run: {first_line(error)}"
        with attends_plainly(self._forward.transformer):
            alone = self._run_alone(items, replace(self._make_batch, packed=False))
        return "" if _is_like(together, alone, precision) else "packed it is not the same as alone"

    def _choose_grouping(self, name: str, precision: str) -> None:
        """Which items are padded together: any, those of one length or none, so that each has its output of alone.

        Raises:
            ModelError: The model does not run.
        """
        items = self.probes.mixed()
        alone = self._as_by_default(items, self._find_alone(items, name), precision)
        twice, wanted = np.tile(np.arange(len(items)), 2), np.concatenate([alone, alone])
        for grouping in _GROUPINGS[_GROUPINGS.index(self._grouping) :]:
            if grouping != self._grouping:
                self._make_batch = replace(self._make_batch, pad_multiple=1)
                print(f"gristmill: {name} reads {_TOLD[grouping]}: beside others it answers otherwise", file=sys.stderr)
            self._grouping = grouping
            try:
                if grouping == "single" or _is_like(self.run(items, twice)[0], wanted, precision):
                    return
            except _CANNOT as error:
                if is_out_of_memory(error):
                    raise

    def _find_alone(self, items: Items, name: str) -> np.ndarray:
        """The outputs of items alone; by plain attention where the model does not run by a faster one."""
        maker = replace(self._make_batch, pad_multiple=1)
        try:
            return self._run_alone(items, maker)
        except _CANNOT as error:
            if is_out_of_memory(error):
                raise
        try:
            self._forward.transformer.set_attn_implementation("eager")
            return self._run_alone(items, maker)
        except _CANNOT as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"model {name!r} loads, but reads no text: {first_line(error)}; take another") from error

    def _as_by_default(self, items: Items, alone: np.ndarray, precision: str) -> np.ndarray:
        """The outputs of items alone by transformers' own choice of attention, which stays where they are others.

        PaliGemma reads a text in both directions by plain attention, and in one by the fused one, which is the default.
        """
        transformer = self._forward.transformer
        if transformer.config._attn_implementation != "eager":
            return alone
        try:
            transformer.set_attn_implementation("sdpa")
            usual = self._run_alone(items, replace(self._make_batch, pad_multiple=1))
            if not _is_like(alone, usual, precision):
                return usual
        except _CANNOT as error:
            if is_out_of_memory(error):
                raise
        transformer.set_attn_implementation("eager")
        return alone

    def _run_alone(self, items: Items, make_batch: BatchMaker) -> np.ndarray:
        return np.concatenate([self._run(items, np.array([i]), make_batch)[0] for i in range(len(items))])


def _is_like(found: np.ndarray, wanted: np.ndarray, precision: str) -> bool:
    if found.shape != wanted.shape:
        return False
    if precision != "float32" and np.isfinite(wanted).all():
        return bool(np.linalg.norm(found - wanted) <= _LIKE_ALONE_ROUNDED * np.linalg.norm(wanted) + 1e-6)
    size = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
    return np.allclose(found, wanted, rtol=0, atol=_LIKE_ALONE * size + 1e-6, equal_nan=True)


def _keep_nothing(transformer: Any) -> None:
    """A decoder keeps no keys and values of what it has read: nothing comes after it."""
    for config in (transformer.config, transformer.config.get_text_config()):
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _read_tokens(transformer: Any) -> tuple[int, int]:
    """The token that padding is made of, and how many tokens the model knows; 0 for any number."""
    import torch

    pad_id = getattr(transformer.config.get_text_config(), "pad_token_id", None)
    try:
        table = transformer.get_input_embeddings()
    except NotImplementedError:
        table = None
    count = table.num_embeddings if isinstance(table, torch.nn.Embedding) else 0
    if isinstance(pad_id, int) and 0 <= pad_id < (count or pad_id + 1):
        return pad_id, count
    return 0, count


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
