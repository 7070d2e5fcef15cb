"""Whether a fast library makes the tokens that `tokenizers` makes: tried once a node for each, and remembered.

Each character is tried by itself, in the middle and at the ends of others; those that come out otherwise are left to
the reference. Of all others texts are made, of all scripts, lengths and of the tokenizer's own tokens, and not one may
differ. What was found lies beside the engines' directories, under the hash of the tokenizer's file and the versions of
both libraries.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from udfs.executor import python_path
from udfs.text.fast import Fast, choose_fast, load_fast
from udfs.wire.home import make_top, top, try_hold

_TRIAL = 4  # changes where a trial does
_LIMIT_S = 60.0
_BATCH = 2_000
_TEXTS = 8_000
_LONG = 200  # so many of them are long
_POINTS = 0x110000
# Blocks of characters that are alike are tried by some of them.
_BLOCKS = (
    (0x09, 0x0E, 1),
    (0x20, 0x3400, 1),
    (0x3400, 0xA000, 16),
    (0xA000, 0xAC00, 1),
    (0xAC00, 0xD7A4, 16),
    (0xF900, 0x10000, 1),
    (0x1D400, 0x1D800, 1),
    (0x1F000, 0x1FB00, 1),
    (0x20000, 0x2A6E0, 256),
)
_PIECES = 5_000
_WORD = 250  # characters: longer than the longest word that WordPiece looks up


@dataclass(frozen=True)
class Verdict:
    """What a trial found.

    Args:
        equal: Texts of the alphabet come out alike.
        edges: Even those that begin or end with space; else these are not covered.
        alphabet: Ranges of code points, from the first to before the last.
        runs: Even those with several spaces in a row, likewise.
    """

    equal: bool
    edges: bool = False
    alphabet: tuple[tuple[int, int], ...] = ()
    runs: bool = True

    def covers(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) bool, texts of the alphabet alone."""
        found = np.ones(len(texts), dtype=bool)
        if not self.edges:
            found &= np.fromiter((t[:1] == t[:1].strip() and t[-1:] == t[-1:].strip() for t in texts), bool, len(texts))
        if not self.runs:
            found &= np.fromiter(("  " not in t for t in texts), bool, len(texts))
        found &= np.fromiter(map(bool, texts), bool, len(texts))
        known = self.holds
        points = "".join(texts).encode("utf-32-le", "surrogatepass")
        strange = np.flatnonzero(~known[np.frombuffer(points, dtype="<u4")])
        if len(strange):
            ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
            found[np.searchsorted(ends, strange, side="right")] = False
        return found

    @cached_property
    def holds(self) -> np.ndarray:
        """(0x110000,) bool, code points of the alphabet."""
        known = np.zeros(_POINTS, dtype=bool)
        for start, stop in self.alphabet:
            known[start:stop] = True
        return known


class Trial:
    """The trial of a tokenizer.json on this node with these versions, in a process of its own that outlives a worker.

    Args:
        file: The tokenizer.json.

    Attributes:
        library: Which one may be used for it, by its name; None for kinds of which none is known to be equal.
    """

    def __init__(self, file: Path) -> None:
        self._file, self.library = file, choose_fast(file)
        self._process: subprocess.Popen[bytes] | None = None

    @cached_property
    def _kept(self) -> Path | None:
        """Where what it finds is kept; None without a library."""
        if self.library is None:
            return None
        try:
            versions = [self.library, version(self.library), version("tokenizers"), unicodedata.unidata_version]
        except PackageNotFoundError:
            return None
        digest = hashlib.sha256(json.dumps([_TRIAL, *versions]).encode() + self._file.read_bytes()).hexdigest()[:32]
        return top() / f"tokenizer-{digest}.json"

    def recall(self) -> Verdict | None:
        """What it has found; None if there is nothing yet."""
        return _read(self._kept) if self._kept and self._kept.exists() else None

    def start(self) -> None:
        """Have it made, once by this process, if no other makes it."""
        if self._process:
            self._process.poll()  # else what has ended stays in the kernel's table
        elif self._kept:
            command = [sys.executable, "-P", "-m", "udfs.text.holding", str(self._file)]
            env = {**os.environ, "PYTHONPATH": python_path(), "RAYON_NUM_THREADS": "1"}
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
            )

    def make(self) -> None:
        """Make it here and keep what it finds, unless another process does or has done so."""
        if self._kept is None:
            return
        make_top(top())
        if (lock := try_hold(self._kept.with_suffix(".lock"))) is None:
            return
        try:
            if not self.recall() and (told := try_tokenizer(self._file)):
                _write(self._kept, told)
        finally:
            os.close(lock)


def try_tokenizer(file: Path, *, limit_s: float = _LIMIT_S) -> Verdict | None:
    """Hold a library to the reference; None where it takes longer than the limit."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(file))
    backend.no_padding()
    backend.no_truncation()
    if (library := choose_fast(file)) is None:
        return Verdict(equal=False)
    try:
        pair = _Pair(backend, load_fast(library, file), time.monotonic() + limit_s)
        added, alphabet = find_added(backend), tuple(_join(_find_alphabet(pair)))
        texts = [text for text in _make_texts(backend, alphabet) if added and not added.search(text)]
        same = pair.compare(texts)
    except TimeoutError:
        return None
    except Exception:  # noqa: BLE001 - it does not know this kind
        return Verdict(equal=False)
    for edges, runs in itertools.product((True, False), (True, False)):
        verdict = Verdict(equal=True, edges=edges, alphabet=alphabet, runs=runs)
        inside = verdict.covers(texts)
        if inside.sum() >= _TEXTS // 4 and same[inside].all():
            return verdict
    return Verdict(equal=False)


class _Pair:
    """The two libraries, compared until a time."""

    def __init__(self, backend: Any, fast: Fast, until: float) -> None:
        self._backend, self._fast, self._until = backend, fast, until

    def compare(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) bool, texts that come out alike.

        Raises:
            TimeoutError: It takes too long.
        """
        return np.concatenate([self._compare(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)])

    def _compare(self, texts: Sequence[str]) -> np.ndarray:
        if time.monotonic() > self._until:
            raise TimeoutError
        wanted = [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        made = self._fast.encode(texts)
        found = np.split(made.ids, made.offsets[1:-1])
        return np.array([len(a) == len(b) and a.tolist() == b for a, b in zip(found, wanted, strict=True)], dtype=bool)


def _find_alphabet(pair: _Pair) -> Iterator[tuple[int, int]]:
    """Ranges of characters that come out alike in the middle of others, and, but for space, alone and at both ends."""
    for first, stop, step in _BLOCKS:
        points = [point for point in range(first, stop, step) if chr(point) in "\t\n\r" or _is_text(chr(point))]
        probes = [f"a{c}b {c} {c}{c} 1{c}.{c}A" for c in map(chr, points)]
        same = pair.compare([re.sub(" +", " ", probe) for probe in probes])
        for edge in ("{0}", "{0}x{0}"):
            same &= pair.compare([edge.format("" if c.isspace() else c) for c in map(chr, points)])
        if step == 1:
            yield from ((point, point + 1) for point, fine in zip(points, same.tolist(), strict=True) if fine)
        elif same.all():
            yield first, stop


def _join(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges in order, those as one that touch."""
    held: tuple[int, int] | None = None
    for start, stop in ranges:
        if held and held[1] == start:
            held = held[0], stop
        else:
            if held:
                yield held
            held = start, stop
    if held:
        yield held


def _is_text(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cn", "Co", "Cs")


def _make_texts(backend: Any, alphabet: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Texts of an alphabet, the same each time: of the tokenizer's own tokens, one script or all, short and long."""
    draw = random.Random(0)
    holds = Verdict(equal=True, alphabet=tuple(alphabet)).holds
    known = [chr(point) for first, stop, step in _BLOCKS for point in range(first, stop, step) if holds[point]]
    common = [character for character in known if character.isascii()]
    pieces = _draw_pieces(backend, set(known), draw) or common
    ends = len(known) - 1

    def near(count: int) -> str:
        start = draw.randrange(len(known))
        return "".join(known[min(ends, start + draw.randrange(40))] for _ in range(count))

    for number in range(_TEXTS):
        count = draw.randrange(1, 30) if number >= _LONG else draw.randrange(200, 2_000)
        kind = number % 5
        if kind < 2:
            yield draw.choice(("", " ", "  ", "\n")).join(draw.choices(pieces, k=count))
        elif kind == 2:
            yield "".join(draw.choices(common, k=count))
        elif kind == 3:
            yield " ".join(near(draw.randrange(1, 9)) for _ in range(1 + count // 9))
        else:
            yield "".join(draw.choice(draw.choice((known, common, pieces))) for _ in range(count))
    yield from (character * _WORD for character in "aZ1.- ")


def _draw_pieces(backend: Any, known: set[str], draw: random.Random) -> list[str]:
    """Tokens of a vocabulary as texts, some in capitals."""
    numbers = draw.sample(range(size := backend.get_vocab_size()), min(size, _PIECES))
    found = backend.decode_batch([[number] for number in numbers], skip_special_tokens=True)
    asked = [piece.upper() if number % 7 == 0 else piece for number, piece in zip(numbers, found, strict=True)]
    return [piece for piece in asked if piece and known.issuperset(piece)]


def find_added(backend: Any) -> re.Pattern[str] | None:
    """What finds added tokens in a text, in whichever case; None where they are looked for in normalized text."""
    added = list(backend.get_added_tokens_decoder().values())
    if backend.normalizer is not None and any(token.normalized for token in added):
        return None
    contents = sorted({token.content for token in added if token.content}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents)) or r"(?!)", re.IGNORECASE)


def _read(kept: Path) -> Verdict | None:
    try:
        told = json.loads(kept.read_text(encoding="utf-8"))
        alphabet = tuple((start, stop) for start, stop in told["alphabet"])
        return Verdict(told["equal"], told["edges"], alphabet, told["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(kept: Path, told: Verdict) -> None:
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(told)), encoding="utf-8")
    partial.replace(kept)


if __name__ == "__main__":
    Trial(Path(sys.argv[1])).make()
