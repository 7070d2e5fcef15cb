"""Steps that write one token of each sequence, recorded as CUDA graphs.

A step of a small model is hundreds of kernels of a few microseconds, and Python takes longer to launch them than the
GPU to run them. So what a step launches is recorded once for each number of rows, over tensors that stay where they
are, and replayed by one launch. Rows that no sequence needs write into the arena's spare place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.cache import Arena
from udfs.generation.step import FixedStep, Piece, Spans

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 32  # rows are rounded up to a multiple of it: few recordings, and that many cost hardly more than one
_WARM_UPS = 2  # what is made by a first call, such as a workspace of a product, is not to be recorded
_LIKE_UNRECORDED = (
    0.05  # how far, of the largest logit, other kernels for another number of rows may carry half precision
)

Call = Callable[[], "Tensor"]


class Graphs:
    """Recorded steps of one model over one arena.

    Args:
        model: Takes `FixedStep`s.
        arena: Where keys and values go.
        device: torch's name.
        record: From a call that reads fixed tensors to one that does the same again, faster.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        arena: Arena,
        *,
        device: str,
        record: Callable[[Call], Call] | None = None,
    ) -> None:
        self._model, self._arena, self._device = model, arena, device
        self._record = record or _Recorder()
        self._recorded: dict[int, tuple[Tensor, Call]] = {}
        self.works = True

    def run(self, ids: np.ndarray, pieces: Sequence[Piece], unrecorded: Call) -> Tensor:
        """Write one token of each sequence.

        Args:
            ids: (B,) the last token of each.
            pieces: B of one token.
            unrecorded: The same step without a graph; it is run where there is none yet, and a new one is held to it.

        Returns:
            (B, V) logits, which the next call may overwrite.
        """
        rows = -(-len(ids) // _ROWS) * _ROWS
        numbers = self._numbers(rows, ids, pieces)
        if rows not in self._recorded:
            wanted = unrecorded()
            if wanted.isfinite().all():  # else there is nothing to hold it to
                self._try_to_record(rows, numbers, wanted)
            return wanted
        fixed, replay = self._recorded[rows]
        fixed.copy_(numbers)
        return replay()[: len(ids)]

    def _numbers(self, rows: int, ids: np.ndarray, pieces: Sequence[Piece]) -> Tensor:
        """(4, rows) int64: token, its position, its place in the arena, and where its sequence begins there."""
        import torch

        numbers = np.zeros((4, rows), dtype=np.int64)
        numbers[2:] = self._arena.tokens
        begins = np.array([piece.slot.start for piece in pieces])
        past = np.array([piece.past for piece in pieces])
        numbers[:, : len(ids)] = ids, past, begins + past, begins
        return torch.from_numpy(numbers)

    def _try_to_record(self, rows: int, numbers: Tensor, wanted: Tensor) -> None:
        """Record a step and hold it to its like; a model that cannot be recorded writes without."""
        try:
            fixed = numbers.to(self._device)
            replay = self._record(lambda: self._call(fixed))
            found = replay()[: len(wanted)]
            apart = float((found - wanted).abs().max() / wanted.abs().max())
        except (RuntimeError, ValueError, TypeError) as error:
            self._give_up(f"{type(error).__name__}: {error}")
            return
        if not apart <= _LIKE_UNRECORDED:
            self._give_up(f"its logits are {apart:.1%} off")
            return
        self._recorded[rows] = fixed, replay

    def _give_up(self, why: str) -> None:
        self.works = False
        self._recorded.clear()
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
            longest=self._arena.tokens,
        )
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            step=FixedStep(self._arena, places, spans),
        )
        logits: Tensor = output.logits[0]
        return logits


class _Recorder:
    """Records CUDA graphs, which share the memory of what is between their first and their last tensor."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Call) -> Call:
        import torch

        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = call()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay
