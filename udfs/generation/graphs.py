"""Steps recorded as CUDA graphs: those that write one token of each sequence, and those that read prompts too.

A step of a small model is hundreds of kernels of a few microseconds, and Python takes longer to launch them than the
GPU to run them. So what a step launches is recorded once for each shape, over tensors that stay where they are, and
replayed by one launch. Rows that no sequence needs write into the arena's spare place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.cache import Arena
from udfs.generation.sending import send
from udfs.generation.step import FixedStep, Pieces, Spans
from udfs.model.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 32  # rows are rounded up to a multiple of it: few recordings, and that many cost hardly more than one
_FINE, _COARSE = 8, 4  # up to so many times as many; above, multiples are so many times as large
_READ_ROWS, _READ_TOKENS = 128, 512  # where prompts are read, sequences and tokens are rounded up to multiples of these
_LEAST_NEW = 128  # tokens of one sequence, and then powers of two: the kernel is launched for so many of each
_MOST_READS = 16  # shapes of steps that read; each keeps its logits
_LIKE_UNRECORDED = 0.05  # of the largest logit: in half precision, other numbers of rows have other sums

Call = Callable[[], "Tensor"]


@dataclass(frozen=True)
class Shape:
    """What is the same in all steps of a recording.

    Args:
        sequences: Of which the rest are idle.
        tokens: New ones of all; the rest belong to nobody.
        most_new: So many of one sequence at most; 1 in a step that only writes.
    """

    sequences: int
    tokens: int
    most_new: int

    @property
    def reads(self) -> bool:
        return self.most_new > 1

    @property
    def numbers(self) -> int:
        """What is told of such a step."""
        return 4 * self.tokens + 4 * (self.sequences + 1)


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
        works: False once a step that only writes could not be recorded, or was not the same; all are then run as they
            are.
        reads: As `works`, of steps that read prompts.
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
        self.works = self.reads = True
        self._model, self._arena, self._longest, self._device = model, arena, longest, device
        self._record = record or _Recorder()
        self._recordings: dict[Shape, tuple[Tensor, Call] | None] = {}  # None where memory did not do
        self._seen: set[Shape] = set()  # once, and not recorded yet

    def run(self, ids: np.ndarray, pieces: Pieces, last: np.ndarray, unrecorded: Call) -> Tensor:
        """Run new tokens of some sequences.

        Args:
            ids: (T,) the tokens, of one sequence after the other.
            pieces: Whose they are.
            last: (R,) tokens of the row whose logits are wanted; where each sequence has one token, all.
            unrecorded: The same step without a graph; it is run where there is none, and a new one is held to it.

        Returns:
            (R, V) logits, which the next call may overwrite.
        """
        shape = _shape_of(pieces, len(last))
        if shape not in self._recordings:
            wanted = unrecorded()
            if not self._is_worth_recording(shape):
                return wanted
            self._try_to_record(shape, self._numbers(shape, ids, pieces, last), wanted)
            # What came out otherwise has left its own keys and values in the cache.
            return wanted if self._recordings.get(shape) else unrecorded()
        recording = self._recordings[shape]
        if recording is None:
            return unrecorded()
        return _replay(*recording, self._numbers(shape, ids, pieces, last))[: len(last)]

    def run_after(self, tokens: Tensor, starts: np.ndarray, pasts: np.ndarray) -> Tensor | None:
        """Write one token of each sequence after another step, whose tokens nobody has looked at.

        Nothing here waits for the device.

        Args:
            tokens: (B,) int64, the last of each sequence, on the device.
            starts: (B,) where the slot of each begins in the arena.
            pasts: (B,) tokens of each that are there.

        Returns:
            As `run`; None where no such step is recorded.
        """
        pieces = Pieces(list, starts, np.ones_like(starts), pasts, np.zeros_like(starts))
        recording = self._recordings.get(shape := _shape_of(pieces, len(tokens)))
        if recording is None:
            return None
        fixed, replay = recording
        fixed.copy_(send(self._numbers(shape, 0, pieces, np.arange(len(tokens))), fixed))
        fixed[: len(tokens)] = tokens
        return replay()[: len(tokens)]

    def _is_worth_recording(self, shape: Shape) -> bool:
        """Steps that read have many shapes: one that has been seen before, while there are few."""
        if not shape.reads:
            return self.works
        if not self.reads or sum(known.reads for known in self._recordings) >= _MOST_READS:
            return False
        if shape in self._seen:
            return True
        self._seen.add(shape)
        return False

    def _numbers(self, shape: Shape, ids: np.ndarray | int, pieces: Pieces, last: np.ndarray) -> np.ndarray:
        """(shape.numbers,) int64, which `_call` takes apart."""
        numbers = np.zeros(shape.numbers, dtype=np.int64)
        tokens, sequences = _take_apart(numbers, shape)
        count, new = len(pieces.counts), int(pieces.ends[-1]) if len(pieces.ends) else 0
        tokens[2], sequences[1], sequences[2] = self._arena.tokens, self._arena.tokens, 1
        if count:
            positions = pieces.positions
            for row, values in enumerate((ids, positions, positions + pieces.each(pieces.starts), pieces.text_lengths)):
                tokens[row, :new] = values
        # An idle sequence has a token as long as there are some; what is left belongs to nobody.
        sequences[0] = np.minimum(np.arange(shape.sequences + 1) + new - count, shape.tokens)
        sequences[0, 0], sequences[0, 1 : count + 1] = 0, pieces.ends
        sequences[1, :count], sequences[2, :count] = pieces.starts, pieces.pasts + pieces.counts
        sequences[3, : len(last)] = last
        return numbers

    def _try_to_record(self, shape: Shape, numbers: np.ndarray, wanted: Tensor) -> None:
        """Record a step of idle rows and hold it to its like with real ones, which a recording of numbers is not."""
        import torch

        none = np.zeros(0, np.int64)
        idle = self._numbers(shape, none, Pieces(list, none, none, none, none), none)
        fixed = torch.from_numpy(idle).to(self._device)
        try:
            replay = self._record(lambda: self._call(fixed, shape))
            found = _replay(fixed, replay, numbers)[: len(wanted)]
        except (RuntimeError, ValueError, TypeError) as error:
            cause = error.__context__ or error
            if is_out_of_memory(error) or is_out_of_memory(cause):
                self._recordings[shape] = None
            else:
                self._give_up(shape, f"{type(error).__name__}: {cause}")
            return
        known = wanted.isfinite()
        if not known.any():
            return
        apart = float((found - wanted)[known].abs().max() / wanted[known].abs().max())
        if apart <= _LIKE_UNRECORDED:
            self._recordings[shape] = fixed, replay
        else:
            self._give_up(shape, f"logits are {apart:.1%} off")

    def forget(self) -> None:
        """The arena gets other tensors: what was recorded over these is of no use, and its memory goes."""
        self._recordings.clear()
        if isinstance(self._record, _Recorder):
            self._record = _Recorder()  # a pool of memory that no recording uses any more cannot be used again

    def _give_up(self, shape: Shape, why: str) -> None:
        """Without recordings of what has failed; steps that only write have none of those that read either."""
        self.reads, self.works = False, self.works and shape.reads
        self._recordings = {known: kept for known, kept in self._recordings.items() if self.works and not known.reads}
        kind = "steps that read prompts" if shape.reads else "steps"
        print(f"gristmill: {kind} are not recorded as CUDA graphs: {why}", file=sys.stderr)

    def _call(self, fixed: Tensor, shape: Shape) -> Tensor:
        """(sequences, V) logits of the tokens that are told by a fixed tensor."""
        (ids, positions, places, texts), (news, starts, lengths, last) = _take_apart(fixed, shape)
        spans = Spans(
            news=news.int(),
            starts=starts.int(),
            lengths=lengths[:-1].int(),
            most_new=shape.most_new,
            longest=self._longest,
        )
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=last[:-1] if shape.reads else 0,
            step=FixedStep(self._arena, places, spans, texts[None]),
        )
        logits: Tensor = output.logits[0]
        return logits


def _shape_of(pieces: Pieces, wanted: int) -> Shape:
    """Of a step that gives logits for so many tokens."""
    sequences, most_new = len(pieces.counts), int(pieces.counts.max())
    if most_new == 1 and wanted == sequences:
        rows = _round_up(sequences)
        return Shape(rows, rows, 1)
    tokens = -(-int(pieces.ends[-1]) // _READ_TOKENS) * _READ_TOKENS
    rows = -(-sequences // _READ_ROWS) * _READ_ROWS
    return Shape(rows, max(tokens, rows), max(_LEAST_NEW, 1 << (most_new - 1).bit_length()))


def _take_apart(numbers: Any, shape: Shape) -> tuple[Any, Any]:
    """(4, tokens): token, its position, its place in the arena, the length of its text. (4, sequences + 1): where the
    new tokens of each begin, where its slot does, its tokens with the new ones, and a token whose logits are wanted."""
    cut = 4 * shape.tokens
    return numbers[:cut].reshape(4, shape.tokens), numbers[cut:].reshape(4, shape.sequences + 1)


def _round_up(rows: int) -> int:
    size = _ROWS if rows <= _FINE * _ROWS else _COARSE * _ROWS
    return -(-rows // size) * size


def _replay(fixed: Tensor, replay: Call, numbers: np.ndarray) -> Tensor:
    import torch

    fixed.copy_(torch.from_numpy(numbers))
    return replay()


class _Recorder:
    """Records CUDA graphs, which share the memory of what is between their first and their last tensor."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, call: Call) -> Call:
        import torch

        here = torch.cuda.current_stream()
        self._stream = stream = self._stream or torch.cuda.Stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        stream.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                call()  # makes what is made once, such as a product's workspace
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                found = call()
        except BaseException:
            self._stream = self._pool = None  # a pool in which a recording has failed takes no other
            raise
        finally:
            torch.cuda.set_stream(here)  # a recording that fails leaves its own in place
            here.wait_stream(stream)

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay
