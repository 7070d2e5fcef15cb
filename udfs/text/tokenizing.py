"""Texts to ragged token ids, in batches, by the fast tokenizer alone (neither torch nor transformers is imported)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from udfs.errors import ModelError, RowError, as_exception, first_line
from udfs.executor import task_cores
from udfs.model.files import ModelFiles, check_named_files
from udfs.model.limits import resolve_max_tokens
from udfs.model.token_types import reads_types
from udfs.model.tokenizer import load_tokenizer
from udfs.spec import Overflow, ScoreSpec
from udfs.text.agreement import add_lacking, find_disagreement, may_have_other_rules
from udfs.text.encoding import Encoder, by_reference, flatten
from udfs.text.splitting import Chunk, Splitter
from udfs.wire.items import Items, join_items

_PROBES = ("a", "", "a b")
_VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Spans:
    """Where the tokens of some items stand in their texts.

    Args:
        start, end: (T,) int32, in characters.
        special: (T,) bool, put there by the tokenizer.
        ids: (T,) int32.
        item: (T,) the item of each token.
        text: (T,) the text of each token.
        texts: Which `text` counts.
    """

    start: np.ndarray
    end: np.ndarray
    special: np.ndarray
    ids: np.ndarray
    item: np.ndarray
    text: np.ndarray
    texts: Sequence[str]


@dataclass(frozen=True)
class Tokenized:
    """What became of a list of texts.

    Args:
        items: Their tokens.
        units: (U + 1,) int64; unit u, a text or a text with one label, is items units[u]:units[u + 1]. A unit that
            failed has none, a long text that is read in chunks has several.
        truncated: (U,) bool, the text has more tokens than one item may have.
        spans: Where the tokens stand; None where nobody asked.
        gaps: (N,) what stands in a text before each item, since the one before; None where nobody asked.
        failures: Unit number -> why it has no item, where that is not its length.
    """

    items: Items
    units: np.ndarray
    truncated: np.ndarray
    spans: Spans | None = None
    gaps: list[str] | None = None
    failures: dict[int, RowError] = field(default_factory=dict)


@dataclass(frozen=True)
class _Around:
    """What a tokenizer puts around a text.

    Args:
        before, after: Token ids.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.before) + len(self.after)

    def put(self, items: Items, *, room: int, from_end: bool = False) -> Items:
        """Items cut to so many tokens of their own, from their ends or their beginnings, with what stands around."""
        if (items.lengths > room).any():
            counts = np.minimum(items.lengths, room)
            starts = items.offsets[1:] - counts if from_end else items.offsets[:-1]
            offsets = np.concatenate([[0], np.cumsum(counts)])
            items = Items(items.ids[np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])], offsets)
        if not self.count:
            return items
        offsets = items.offsets + np.arange(len(items) + 1) * self.count
        ids, own = np.empty(int(offsets[-1]), dtype=np.int32), np.ones(int(offsets[-1]), dtype=bool)
        for numbers, first in ((self.before, offsets[:-1]), (self.after, offsets[1:] - len(self.after))):
            places = first[:, None] + np.arange(len(numbers))
            ids[places], own[places] = numbers, False
        ids[own] = items.ids
        return Items(ids, offsets)


@dataclass(frozen=True)
class _Piece:
    """A text, or a chunk of one that begins at character `start`, in tokens."""

    encoding: Any
    start: int = 0


class Tokenizer:
    """A model's fast tokenizer, set to one maximum length and one way to treat longer texts.

    Args:
        files: The model.
        max_tokens: Longest item, special tokens included; None takes the model's own limit.
        overflow: What becomes of a longer text; `truncated` tells it in any case.
        chunk_overlap: Tokens of a chunk that the next one may repeat.
        before: What is put before each text, or chunk of one.
        lowercase: Lower-case texts first, as some sentence-transformers models ask for.
        with_spans: Tell where each token stands in its text.

    Raises:
        ModelError: No tokenizer among the files, or max_tokens above what the model can read.
        SpecError: From a call: chunks have no room, or would overlap by more than a half.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        max_tokens: int | None,
        overflow: Overflow,
        chunk_overlap: int = 0,
        before: str = "",
        lowercase: bool = False,
        with_spans: bool = False,
    ) -> None:
        self.max_tokens = resolve_max_tokens(files, max_tokens)
        self._overflow, self._chunk_overlap, self._files = overflow, chunk_overlap, files
        self._before, self._with_spans = before, with_spans
        self._splitters: dict[tuple[str, ...], Splitter] = {}
        self._direction = files.read_json("tokenizer_config.json").get("truncation_side") or "right"
        self._backend, file = _load(files)
        self._backend.no_padding()
        self._backend.no_truncation()
        changed = lowercase and make_lowercase(self._backend)
        self._around = _find_around(self._backend)
        self._encoder = Encoder(self._backend, None if with_spans or changed else file)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] = ()) -> Tokenized:
        """Tokenize texts, each alone or once with each of some second texts; only the first is ever cut.

        Returns:
            One unit a text, or one for each of its pairs, text by text. It has no item where nothing is left of it: no
            token at all, or too long under `fail`.
        """
        splitter = self._splitter(pairs) if self._overflow == "chunk" else None
        if self._around is not None and not pairs and not self._with_spans:
            return self._tokenize_alone(self._around, texts, splitter)
        encodings = self._encode(texts, pairs)
        long = np.fromiter((bool(e.overflowing) for e in encodings), dtype=bool, count=len(encodings))
        kept = [
            [] if not len(e) or (cut and self._overflow == "fail") else [_Piece(e)]
            for e, cut in zip(encodings, long.tolist(), strict=True)
        ]
        if splitter and long.any():
            kept = self._chunk(splitter, kept, long, texts, pairs)
        units = np.concatenate([[0], np.cumsum([len(k) for k in kept], dtype=np.int64)])
        items = _make_items(kept, with_types=len(pairs) > 0 and reads_types(self._files))
        spans = _make_spans(kept, items, units, texts) if self._with_spans else None
        return Tokenized(items, units, long, spans)

    def count_pairs(self, text: str, pairs: Sequence[str]) -> np.ndarray:
        """(N,) tokens of one text with each second text, nothing cut."""
        self._backend.no_truncation()
        return np.array([len(e.ids) for e in self._backend.encode_batch([(text, pair) for pair in pairs])])

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return self._backend.get_vocab_size()

    def count_prompt(self) -> int:
        """Tokens with which an item begins because of what is put before each text, special ones included.

        Source: sentence-transformers, `Transformer._get_prompt_length`.
        """
        if not self._before:
            return 0
        (encoding,) = self._encode([""], ())
        special = {number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}
        ends = len(encoding) > 0 and (encoding.special_tokens_mask[-1] or encoding.ids[-1] in {*special, self._unknown})
        return len(encoding) - int(ends)

    def _tokenize_alone(self, around: _Around, texts: Sequence[str], splitter: Splitter | None) -> Tokenized:
        """Texts without pairs, in arrays all the way."""
        self._backend.no_truncation()
        room = self.max_tokens - around.count
        ids = self._encoder([self._before + text for text in texts] if self._before else texts)
        long = ids.lengths > room
        counts = (ids.lengths + around.count > 0).astype(np.int64)
        if splitter and long.any():
            numbers = np.flatnonzero(long)
            chunks = self._cut(splitter, [texts[number] for number in numbers.tolist()])
            parts = self._encoder([self._before + chunk.text for found in chunks for chunk in found])
            real = parts.lengths + around.count > 0
            of_text = np.repeat(numbers, [len(found) for found in chunks])[real]
            counts[numbers] = 0
            np.add.at(counts, of_text, 1)
            kept = np.flatnonzero((counts > 0) & ~long)
            source = np.concatenate([kept, of_text])
            where = np.concatenate([kept, len(texts) + np.flatnonzero(real)])
            ids = join_items([ids, parts]).take(where[np.argsort(source, kind="stable")])
        else:
            if self._overflow == "fail":
                counts[long] = 0
            if not counts.all():
                ids = ids.take(np.flatnonzero(counts))
        units = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return Tokenized(around.put(ids, room=room, from_end=self._direction == "left"), units, long)

    def _cut(self, splitter: Splitter, texts: Sequence[str]) -> list[list[Chunk]]:
        """The chunks of texts. The splitter counts the tokens of many parts of each: by the faster library, where it
        is equal, in a tenth of the time."""
        counter = self._encoder.counter()
        if counter is None:
            return splitter(texts)
        count, may_count = counter
        fast = may_count(texts)
        by_fast = iter(splitter.counting_by(count)([texts[n] for n in np.flatnonzero(fast).tolist()]))
        by_reference = iter(splitter([texts[n] for n in np.flatnonzero(~fast).tolist()]))
        return [next(by_fast if is_fast else by_reference) for is_fast in fast.tolist()]

    def _encode(self, texts: Sequence[str], pairs: Sequence[str]) -> list[Any]:
        """Encodings of each text, or of its pairs, text by text; what was cut off is their `overflowing`."""
        strategy = "only_first" if pairs else "longest_first"
        self._backend.enable_truncation(self.max_tokens, strategy=strategy, direction=self._direction)
        encode = self._backend.encode_batch if self._with_spans else self._backend.encode_batch_fast
        asked = [self._before + text for text in texts]
        return encode([(text, pair) for text in asked for pair in pairs] if pairs else asked)

    def _chunk(
        self,
        splitter: Splitter,
        kept: list[list[_Piece]],
        long: np.ndarray,
        texts: Sequence[str],
        pairs: Sequence[str],
    ) -> list[list[_Piece]]:
        """What is kept, with the chunks of each long text in the place of its beginning; the same for all its pairs."""
        per_text = max(1, len(pairs))
        numbers = np.flatnonzero(long.reshape(-1, per_text).any(axis=1)).tolist()
        chunks = splitter([texts[number] for number in numbers])
        encodings = iter(self._encode([chunk.text for parts in chunks for chunk in parts], pairs))
        chunked = [*kept]
        for number, parts in zip(numbers, chunks, strict=True):
            pieces = [[_Piece(next(encodings), chunk.start) for _ in range(per_text)] for chunk in parts]
            for pair in range(per_text):
                chunked[number * per_text + pair] = [row[pair] for row in pieces if row[pair].encoding.ids]
        return chunked

    def _splitter(self, pairs: Sequence[str]) -> Splitter:
        """What cuts texts so that a chunk has room for special tokens and the longest second text."""
        if (key := tuple(pairs)) not in self._splitters:
            self._backend.no_truncation()
            before = self._before
            around = self.count_pairs(before, pairs).max() if pairs else len(self._backend.encode(before).ids)
            room = self.max_tokens - int(around)
            self._splitters[key] = Splitter(self._backend, room=room, overlap=self._chunk_overlap)
        return self._splitters[key]

    def continues(self, spans: Spans) -> np.ndarray:
        """(T,) bool, the token goes on with the word of the one before.

        Tokenizers that mark such tokens (`##ing`) are read; of the others it is guessed by the space before.

        Source: transformers, `TokenClassificationPipeline.gather_pre_entities`.
        """
        if getattr(self._backend.model, "continuing_subword_prefix", None):
            shown = np.fromiter((len(self._backend.id_to_token(i)) for i in spans.ids.tolist()), int, len(spans.ids))
            inside = shown != spans.end - spans.start
        else:
            starts, texts = spans.start.tolist(), spans.text.tolist()
            inside = np.fromiter(
                (s > 0 and " " not in spans.texts[t][s - 1 : s + 1] for s, t in zip(starts, texts, strict=True)),
                bool,
                len(starts),
            )
        return inside & (spans.ids != self._unknown)

    def piece(self, spans: Spans, token: int) -> str:
        """What a token is called; an unknown one by its text."""
        if spans.ids[token] == self._unknown:
            return spans.texts[spans.text[token]][spans.start[token] : spans.end[token]]
        return self._backend.id_to_token(int(spans.ids[token]))

    def join_pieces(self, pieces: list[str]) -> str:
        """Tokens as a reader writes them."""
        decoder = self._backend.decoder
        return decoder.decode(pieces) if decoder is not None else " ".join(pieces)

    @cached_property
    def _unknown(self) -> int:
        told = self._files.read_json("tokenizer_config.json").get("unk_token")
        token = told.get("content") if isinstance(told, dict) else told
        token = token or getattr(self._backend.model, "unk_token", None)
        found = self._backend.token_to_id(token) if token else None
        return -1 if found is None else int(found)


def make_tokenizer(
    spec: ScoreSpec, files: ModelFiles, *, before: str = "", lowercase: bool = False, with_spans: bool = False
) -> Tokenizer:
    """The tokenizer that a spec asks for."""
    return Tokenizer(
        files,
        max_tokens=spec.max_tokens,
        overflow=spec.overflow,
        chunk_overlap=spec.chunk_overlap,
        before=before,
        lowercase=lowercase,
        with_spans=with_spans,
    )


def _find_around(backend: Any) -> _Around | None:
    """What a tokenizer puts around a text; None where that is not the same for each."""
    made = [backend.encode(text) for text in _PROBES]
    inside = [number for number, side in enumerate(made[0].sequence_ids) if side is not None]
    if not inside:
        return None
    around = _Around(tuple(made[0].ids[: inside[0]]), tuple(made[0].ids[inside[-1] + 1 :]))
    alone = by_reference(backend, _PROBES)
    wanted = [number for encoding in made for number in encoding.ids]
    return around if around.put(alone, room=int(alone.lengths.max())).ids.tolist() == wanted else None


def find_tokenizer_file(files: ModelFiles) -> Path | None:
    """The model's tokenizer.json, if it has one."""
    return next((found for folder in files.folders if (found := folder / "tokenizer.json").is_file()), None)


def load_backend(files: ModelFiles) -> Any:
    """The model's fast tokenizer, as its own settings leave it."""
    return _load(files)[0]


def make_lowercase(backend: Any) -> bool:
    """Have a tokenizer lower-case texts first, but for the special tokens that they spell; whether that changed it.

    Source: sentence-transformers, `do_lower_case` of its `Transformer`.
    """
    from tokenizers.normalizers import BertNormalizer, Lowercase, Normalizer
    from tokenizers.normalizers import Sequence as Normalizers

    before = backend.normalizer
    are_several = isinstance(before, Normalizers)
    parts: list[Normalizer] = list(before) if are_several else [before] if before else []
    if any(isinstance(part, Lowercase) or (isinstance(part, BertNormalizer) and part.lowercase) for part in parts):
        return False
    backend.normalizer = Normalizers([Lowercase(), *parts])
    return True


def _load(files: ModelFiles) -> tuple[Any, Path | None]:
    """The fast tokenizer, and the tokenizer.json that it cuts texts by; None where transformers has made it."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(task_cores()))
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    if (file := find_tokenizer_file(files)) is None:
        return _convert_backend(files), None
    try:
        backend = Backend.from_file(str(file))
    except BaseException as error:
        raise ModelError(
            f"model {files.name!r} has a tokenizer.json that does not load: {first_line(as_exception(error))}"
        ) from error
    if files.is_static:  # which has vectors of words alone
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        return backend, file
    settled = _settle(files, backend)
    return settled, file if settled is backend else None


def _settle(files: ModelFiles, backend: Any) -> Any:
    """What tokenizer.json makes; where the files beside it may say otherwise, what transformers makes of them all."""
    otherwise = find_disagreement(files, backend)
    if otherwise is None:
        add_lacking(files, backend)
        if not may_have_other_rules(files, backend):
            return backend
    check_named_files(files.name, files.root, files.tokenizer, beside=True)
    try:
        return load_tokenizer(files).backend_tokenizer
    except (ModelError, AttributeError) as error:
        if otherwise is None:  # then there is nothing but tokenizer.json to go by
            return backend
        raise ModelError(
            f"model {files.name!r} has files beside its tokenizer.json that say otherwise ({otherwise}), and no "
            f"tokenizer can be made of them: {error}; save it anew with transformers' `save_pretrained`, or mend them"
        ) from error


def _convert_backend(files: ModelFiles) -> Any:
    """An older model without tokenizer.json: transformers makes the fast tokenizer from its vocabulary."""
    if not any((folder / name).is_file() for folder in files.folders for name in _VOCABULARIES):
        # transformers would make an empty one, to which every word is unknown
        raise ModelError(f"model {files.name!r} has no tokenizer: no tokenizer.json, no {', '.join(_VOCABULARIES)}")
    try:
        return load_tokenizer(files).backend_tokenizer
    except (ModelError, AttributeError) as error:
        raise ModelError(
            f"model {files.name!r} has no tokenizer.json, and none can be made of its other files: {error}"
        ) from error


def join_ids(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of token ids as (T,) int32, one after the other, and (N + 1,) int64, where each begins."""
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)])
    return flatten(ids, offsets), offsets


def _make_items(kept: list[list[_Piece]], *, with_types: bool) -> Items:
    encodings = [piece.encoding for pieces in kept for piece in pieces]
    flat, offsets = join_ids([e.ids for e in encodings])
    types = None
    if with_types:
        types = flatten([e.type_ids for e in encodings], offsets)
        types = types if types.any() else None
    return Items(flat, offsets, types)


def _make_spans(kept: list[list[_Piece]], items: Items, units: np.ndarray, texts: Sequence[str]) -> Spans:
    pieces = [piece for pieces in kept for piece in pieces]
    item = np.repeat(np.arange(len(items)), items.lengths)
    offsets = np.array([pair for p in pieces for pair in p.encoding.offsets], dtype=np.int32).reshape(-1, 2)
    offsets += np.array([p.start for p in pieces], dtype=np.int32)[item, None]
    special = np.array([mark for p in pieces for mark in p.encoding.special_tokens_mask], dtype=bool)
    text = np.repeat(np.arange(len(units) - 1), np.diff(units))[item]
    return Spans(offsets[:, 0], offsets[:, 1], special, items.ids, item, text, texts)
