"""Steps that write one token of each sequence, recorded as CUDA graphs.

A step of a small model is hundreds of kernels of a few microseconds, and Python takes longer to launch them than the
GPU to run them. So what a step launches is recorded once for each number of rows, over tensors that stay where they
are, and replayed by one launch. Rows that no sequence needs write into the arena's spare place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.cache import Arena
from udfs.generation.step import FixedStep, Pieces, Spans
from udfs.model.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 32  # rows are rounded up to a multiple of it: few recordings, and that many cost hardly more than one
_FINE, _COARSE = 8, 4  # up to so many times as many; above, multiples are so many times as large
_LIKE_UNRECORDED = 0.05  # of the largest logit: in half precision, other numbers of rows have other sums

Call = Callable[[], "Tensor"]


class Graphs:
    """Recorded steps of one model over one arena.

    Args:
        model: Takes `FixedStep`s.
        arena: Where keys and values go.
        longest: No sequence becomes longer, in tokens; the kernel shares out its work by it.
        device: torch's name.
        record: From a call that reads fixed tensors to one that does the same with what they hold later, and gives the
            same tensor each time; None makes CUDA graphs.

    Attributes:
        works: False once a step could not be recorded, or was not the same; all steps are then run as they are.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        arena: Arena,
        *,
        longest: int,
        device: str,
        record: Callable[[Call], Call] | None = None,
    ) -> None:
        self.works = True
        self._model, self._arena, self._longest, self._device = model, arena, longest, device
        self._record = record or _Recorder()
        self._recordings: dict[int, tuple[Tensor, Call] | None] = {}  # by rows; None where memory did not do

    def run(self, ids: np.ndarray, pieces: Pieces, unrecorded: Call) -> Tensor:
        """Write one token of each sequence.

        Args:
            ids: (B,) the last token of each.
            pieces: Of one token each.
            unrecorded: The same step without a graph; it is run where there is none, and a new one is held to it.

        Returns:
            (B, V) logits, which the next call may overwrite.
        """
        rows = _round_up(len(ids))
        numbers = self._numbers(rows, ids, pieces.starts, pieces.pasts)
        if rows not in self._recordings:
            wanted = unrecorded()
            self._try_to_record(rows, numbers, wanted)
            return wanted
        recording = self._recordings[rows]
        return unrecorded() if recording is None else _replay(*recording, numbers)[: len(ids)]

    def run_after(self, tokens: Tensor, rows: np.ndarray, starts: np.ndarray, pasts: np.ndarray) -> Tensor | None:
        """Write one token of each sequence after another step, whose tokens nobody has looked at.

        Nothing here waits for the device.

        Args:
            tokens: (R,) int64 of that step, on the device.
            rows: (B,) int64, which of those is the last of each sequence.
            starts: (B,) where the slot of each begins in the arena.
            pasts: (B,) tokens of each that are there.

        Returns:
            As `run`; None where no such step is recorded.
        """
        import torch

        recording = self._recordings.get(_round_up(len(rows)))
        if recording is None:
            return None
        fixed, replay = recording
        numbers = self._numbers(fixed.shape[1], 0, starts, pasts)
        fixed.copy_(_send(numbers, like=fixed))
        fixed[0, : len(rows)] = tokens.index_select(0, _send(torch.from_numpy(rows), like=fixed))
        return replay()[: len(rows)]

    def _numbers(self, rows: int, ids: np.ndarray | int, starts: np.ndarray, pasts: np.ndarray) -> Tensor:
        """(4, rows) int64: token, its position, its place in the arena, and where its sequence begins there."""
        import torch

        numbers = np.zeros((4, rows), dtype=np.int64)
        numbers[2:] = self._arena.tokens
        for number, values in enumerate((ids, pasts, starts + pasts, starts)):
            numbers[number, : len(starts)] = values
        return torch.from_numpy(numbers)

    def _try_to_record(self, rows: int, numbers: Tensor, wanted: Tensor) -> None:
        """Record a step of idle rows and hold it to its like with real ones, which a recording of numbers is not."""
        fixed = self._numbers(rows, 0, *np.zeros((2, 0), np.int64)).to(self._device)
        try:
            replay = self._record(lambda: self._call(fixed))
            found = _replay(fixed, replay, numbers)[: len(wanted)]
        except (RuntimeError, ValueError, TypeError) as error:
            cause = error.__context__ or error
            if is_out_of_memory(error) or is_out_of_memory(cause):
                self._recordings[rows] = None
            else:
                self._give_up(f"{type(error).__name__}: {cause}")
            return
        known = wanted.isfinite()
        if not known.any():
            return
        apart = float((found - wanted)[known].abs().max() / wanted[known].abs().max())
        if apart <= _LIKE_UNRECORDED:
            self._recordings[rows] = fixed, replay
        else:
            self._give_up(f"logits are {apart:.1%} off")

    def forget(self) -> None:
        """The arena gets other tensors: what was recorded over these is of no use, and its memory goes."""
        self._recordings.clear()
        if isinstance(self._record, _Recorder):
            self._record = _Recorder()  # a pool of memory that no recording uses any more cannot be used again

    def _give_up(self, why: str) -> None:
        self.works = False
        self._recordings.clear()
        print(f"gristmill: steps are not recorded as CUDA graphs: {why}", file=sys.stderr)

    def _call(self, fixed: Tensor) -> Tensor:
        """(rows, V) logits of the tokens that are told by fixed tensors."""
        import torch

        ids, positions, places, begins = fixed
        spans = Spans(
            news=torch.arange(len(ids) + 1, dtype=torch.int32, device=self._device),
            starts=torch.nn.functional.pad(begins, (0, 1)).int(),
            lengths=(positions + 1).int(),
            most_new=1,
            longest=self._longest,
        )
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            step=FixedStep(self._arena, places, spans),
        )
        logits: Tensor = output.logits[0]
        return logits


def _round_up(rows: int) -> int:
    size = _ROWS if rows <= _FINE * _ROWS else _COARSE * _ROWS
    return -(-rows // size) * size


def _send(numbers: Tensor, *, like: Tensor) -> Tensor:
    """To the device of another, which is not waited for."""
    return numbers.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else numbers.to(like.device)


def _replay(fixed: Tensor, replay: Call, numbers: Tensor) -> Tensor:
    fixed.copy_(numbers)
    return replay()


class _Recorder:
    """Records CUDA graphs, which share the memory of what is between their first and their last tensor."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, call: Call) -> Call:
        import torch

        here = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                call()  # makes what is made once, such as a product's workspace
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                found = call()
        finally:
            torch.cuda.set_stream(here)  # a recording that fails leaves its own in place
            here.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay
