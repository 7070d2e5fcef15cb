"""Pairs of texts to ragged token ids, as transformers' tokenizers make them of `text` and `text_pair`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.limits import resolve_max_tokens
from udfs.model.token_types import reads_types
from udfs.spec import Overflow
from udfs.text.splitting import Splitter
from udfs.text.tokenizing import Tokenized, join_ids, load_backend, make_lowercase
from udfs.wire.items import Items

Truncation = Literal["longest_first", "only_first", "only_second"]
_SIDES = {"only_first": 0, "only_second": 1}
_LEAST_SHARE = 8  # a chunk has this part of max_tokens or more: else a row could make a chunk of each of its words
_PROBE_TOKENS = 100  # the shortest of a vocabulary, of which a tokenizer makes tokens again

Ids = list[int]


class PairTokenizer:
    """A model's fast tokenizer for pairs of texts, with the separators and the types that its own settings say.

    Each distinct text is tokenized once, however many pairs it is in.

    Args:
        files: The model.
        max_tokens: Longest pair, special tokens included; None takes the model's own limit.
        overflow: What becomes of a longer one. `chunk` reads the text that `truncation` names, or the longer one, in
            chunks, each with the whole of the other text.
        truncation: Which text is cut: one of them, or whichever is longer until both are as long.
        chunk_overlap: Tokens of a chunk that the next one may repeat.
        before: What is put before each first text.
        lowercase: Lower-case texts first, as some sentence-transformers models ask for.

    Raises:
        ModelError: No tokenizer among the files, max_tokens above what the model can read, or no room for two texts.
        SpecError: Chunks would overlap by more than a half.

    Source: transformers, `tokenizer(text, text_pair, truncation=…)`.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        max_tokens: int | None,
        overflow: Overflow,
        truncation: Truncation = "longest_first",
        chunk_overlap: int = 0,
        before: str = "",
        lowercase: bool = False,
    ) -> None:
        self.max_tokens = resolve_max_tokens(files, max_tokens)
        self._overflow, self._side, self._chunk_overlap = overflow, _SIDES.get(truncation), chunk_overlap
        self._before, self._with_types = before, reads_types(files)
        self._keeps_end = files.read_json("tokenizer_config.json").get("truncation_side") == "left"
        self._backend = load_backend(files)
        self._backend.no_padding()
        self._backend.no_truncation()
        if lowercase:
            make_lowercase(self._backend)
        self._shape = _find_shape(self._backend, files)
        self._room = self.max_tokens - self._shape.specials
        self._taken = len(self._encode([before])[0])
        if self._room - self._taken < 2:
            raise ModelError(f"max_tokens = {self.max_tokens} leaves no room for two texts of model {files.name!r}")
        self._splitters: dict[int, Splitter] = {}
        if overflow == "chunk":
            self._splitter(self._room - self._taken - 1, overlap=chunk_overlap)

    @property
    def parts_texts(self) -> bool:
        """The tokenizer puts something of its own between two texts."""
        return self._shape.parts_texts

    def __call__(self, texts: Sequence[str], text_pairs: Sequence[str]) -> Tokenized:
        """Tokenize pairs, each of a first text and the second text in the same place.

        Returns:
            One unit a pair. It has no item where nothing is left of it: no token at all, too long under `fail`, or
            too long beside the text that is not to be cut.
        """
        firsts, seconds = self._encode([self._before + text for text in texts]), self._encode(text_pairs)
        ids = list(zip(firsts, seconds, strict=True))
        kept = [[pair] if self._shape.specials + sum(map(len, pair)) else [] for pair in ids]
        long = np.array([sum(map(len, pair)) > self._room for pair in ids], dtype=bool)
        for number in np.flatnonzero(long).tolist():
            if self._overflow == "truncate":
                kept[number] = self._cut(*ids[number])
            elif self._overflow == "chunk":
                kept[number] = self._chunk((texts[number], text_pairs[number]), ids[number])
            else:
                kept[number] = []
        units = np.concatenate([[0], np.cumsum([len(pieces) for pieces in kept], dtype=np.int64)])
        items = self._shape.join([pair for pieces in kept for pair in pieces], with_types=self._with_types)
        return Tokenized(items, units, long)

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, without those that stand around them."""
        distinct = list(dict.fromkeys(texts))
        found = self._backend.encode_batch_fast(distinct, add_special_tokens=False)
        ids = {text: e.ids for text, e in zip(distinct, found, strict=True)}
        return [ids[text] for text in texts]

    def _cut(self, first: Ids, second: Ids) -> list[tuple[Ids, Ids]]:
        """A pair that is too long, short enough; nothing where the text that is not to be cut leaves no room."""
        lengths = [len(first), len(second)]
        if self._side is None:
            longer = int(lengths[1] >= lengths[0])
            lengths[1 - longer] = min(lengths[1 - longer], self._room // 2)
            lengths[longer] = self._room - lengths[1 - longer]
        else:
            lengths[self._side] = self._room - lengths[1 - self._side]
            if lengths[self._side] < 1:
                return []
        return [(self._take(first, lengths[0]), self._take(second, lengths[1]))]

    def _take(self, ids: Ids, count: int) -> Ids:
        return ids[-count:] if self._keeps_end else ids[:count]

    def _chunk(self, texts: tuple[str, str], ids: tuple[Ids, Ids]) -> list[tuple[Ids, Ids]]:
        """A pair for each chunk of one text, with the whole of the other; nothing where that leaves too little room."""
        side = int(len(ids[1]) >= len(ids[0])) if self._side is None else self._side
        other, before = ids[1 - side], self._before if side == 0 else ""
        room = self._room - len(other)
        within = room - (self._taken if before else 0)
        if within < max(1, self.max_tokens // _LEAST_SHARE):
            return []
        (chunks,) = self._splitter(within, overlap=min(self._chunk_overlap, within // 2))([texts[side]])
        parts = [part[:room] for part in self._encode([before + chunk.text for chunk in chunks])]
        return [(part, other) if side == 0 else (other, part) for part in parts if part]

    def _splitter(self, room: int, *, overlap: int) -> Splitter:
        """What cuts texts into chunks of so many tokens; the room differs from row to row."""
        if room not in self._splitters:
            self._splitters[room] = Splitter(self._count, room=room, overlap=overlap)
        return self._splitters[room]

    def _count(self, text: str) -> int:
        return len(self._backend.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class _Shape:
    """What a tokenizer makes of two texts: special tokens, and the places of the texts among them.

    Args:
        pieces: In order: a special token's id, or -1 for the first text and -2 for the second.
        types: Of each piece.
    """

    pieces: tuple[int, ...]
    types: tuple[int, ...]

    @property
    def specials(self) -> int:
        return len(self.pieces) - 2

    @property
    def parts_texts(self) -> bool:
        return abs(self.pieces.index(-1) - self.pieces.index(-2)) > 1

    def join(self, pairs: Sequence[tuple[Ids, Ids]], *, with_types: bool) -> Items:
        """Items of pairs, an item each."""
        filled = [[part for piece in self.pieces for part in self._fill(piece, pair)] for pair in pairs]
        flat, offsets = join_ids(filled)
        if not with_types or not any(self.types):
            return Items(flat, offsets)
        lengths = [len(self._fill(piece, pair)) for pair in pairs for piece in self.pieces]
        types = np.repeat(np.tile(np.array(self.types, dtype=np.int32), len(pairs)), lengths)
        return Items(flat, offsets, types if types.any() else None)

    def _fill(self, piece: int, pair: tuple[Ids, Ids]) -> Ids:
        return [piece] if piece >= 0 else pair[-1 - piece]


def _find_shape(backend: Any, files: ModelFiles) -> _Shape:
    """The shape of a tokenizer's pairs, by a pair of texts that it knows, and held to another one.

    Raises:
        ModelError: Its pairs are no two texts with special tokens around them.
    """
    known = sorted(backend.get_vocab(), key=len)[:_PROBE_TOKENS]
    first, second = "a " + " ".join(known), " ".join(known[::-3])
    made = backend.encode(first, second)
    pieces: list[int] = []
    types: list[int] = []
    before = None
    for number, kind, side in zip(made.ids, made.type_ids, made.sequence_ids, strict=True):
        if side is None or side != before:
            pieces.append(number if side is None else -1 - side)
            types.append(kind)
        before = side
    shape = _Shape(tuple(pieces), tuple(types))
    if sorted(pieces)[:2] == [-2, -1] and _holds(shape, backend, first, second) and _holds(shape, backend, second, "a"):
        return shape
    raise ModelError(f"the tokenizer of model {files.name!r} makes no pairs of two texts; join them by a template")


def _holds(shape: _Shape, backend: Any, first: str, second: str) -> bool:
    """Whether a pair comes out of a shape as it does out of the tokenizer."""
    made = backend.encode(first, second)
    ids = [backend.encode(text, add_special_tokens=False).ids for text in (first, second)]
    items = shape.join([(ids[0], ids[1])], with_types=True)
    types = np.zeros_like(items.ids) if items.type_ids is None else items.type_ids
    return items.ids.tolist() == made.ids and types.tolist() == made.type_ids
