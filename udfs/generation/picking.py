"""The next token of each sequence: from logits to a token, and whether the answer ends with it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.errors import as_exception
from udfs.generation.choices import Choices, Place
from udfs.generation.grammar import Grammar, Matcher
from udfs.model.files import ModelFiles
from udfs.tasks.row_options import read_differing
from udfs.tasks.writing_options import WritingOptions
from udfs.text.choices import encode_choices
from udfs.text.codec import load_codec
from udfs.text.reasoning import find_marks
from udfs.wire.written import BROKEN, LENGTH, STOP, Logprobs, Written

if TYPE_CHECKING:
    from torch import Tensor

_TAIL_TOKENS = 8
_TAIL_OF_PROMPT = 8  # tokens that may hold a mark of thoughts
_TOKENS_A_CHARACTER = 4  # at most: one for each of its bytes
_LIKELY, _CHUNK = 64, 64  # tokens among which nearly all draws end, and those of which one maximum is looked at
_KEPT_WAYS = 512  # of items with options of their own


@dataclass(frozen=True, eq=False)
class Way:
    """How an item is answered.

    Args:
        options: The job's, with the item's own laid over them.
        index: Which of its row's answers it is.
        grammar: Holds it to a schema or choices; None for nothing.
        marks: Tokens that begin and end thoughts, which no grammar binds; None binds all that is written.
    """

    options: WritingOptions
    index: int = 0
    grammar: Any = None
    marks: tuple[int, int] | None = None

    @cached_property
    def tail(self) -> int:
        """Tokens that may hold a stop string."""
        return _TAIL_TOKENS + _TOKENS_A_CHARACTER * max(map(len, self.options.stop), default=0)

    @cached_property
    def changes_logits(self) -> bool:
        """By what it says itself, not by the model's own penalty."""
        options = self.options
        return bool(options.presence_penalty or options.frequency_penalty or options.logit_bias or options.min_tokens)

    @cached_property
    def bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and what is added to their logits."""
        told = self.options.logit_bias or {}
        return np.array([*map(int, told)], dtype=np.int64), np.array([*told.values()], dtype=np.float32)


@dataclass(eq=False)
class Sequence:
    """One item, as it is being written.

    Args:
        owner: Whoever is to be told of its end.
        prompt: (P,) int32 tokens.
        way: How it is answered.
        matcher: Holds it to a schema or choices.
        thinks: It writes thoughts, which nothing binds; None while it may begin to.
        draws: Random numbers that belong to its prompt and the seed alone.
        ids: What has been written.
        cached_tokens: Of the prompt, those that were copied from another sequence.
        finish: How it ended; None while it goes on.
        error: What went wrong with it alone, so that it has no answer.
        refused: That is its options, which nothing can be written by.
    """

    owner: Any
    prompt: np.ndarray
    way: Way
    matcher: Matcher | Place | None = None
    thinks: bool | None = False
    draws: np.random.Generator | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, list[int], list[float]]] = field(default_factory=list)
    cached_tokens: int = 0
    finish: int | None = None
    error: Exception | None = None
    refused: bool = False

    def written(self) -> Written:
        told = self._told() if self.way.options.logprobs else None
        return Written(np.array(self.ids, dtype=np.int32), self.finish or STOP, self.cached_tokens, told)

    def _told(self) -> Logprobs:
        told, width = self.logprobs[: len(self.ids)], self.way.options.top_logprobs
        return Logprobs(
            np.array([value for value, _, _ in told], dtype=np.float32),
            np.array([ids for _, ids, _ in told], dtype=np.int32).reshape(len(told), width),
            np.array([values for _, _, values in told], dtype=np.float32).reshape(len(told), width),
        )


class Picker:
    """Greedy or drawn, within a grammar, until an end token, a stop string or the longest answer.

    Sequences that are answered in different ways are picked for side by side, each as it would be alone.

    Args:
        options: How tokens are picked where an item says nothing else.
        ends: Token ids that end an answer.
        tokenizer: transformers' own; needed for stop strings and schemas.
        penalty: The model's own repetition penalty; 1 for none.
        choices: Token ids of what an answer has to be one of.
        marks: Tokens that begin and end thoughts, which no schema and no choices bind; None binds all that is written.
        files: The model's, to load what an item's own options need; None where no item has any.
    """

    def __init__(
        self,
        options: WritingOptions,
        *,
        ends: frozenset[int],
        tokenizer: Any,
        penalty: float = 1.0,
        choices: Collection[list[int]] = (),
        marks: tuple[int, int] | None = None,
        files: ModelFiles | None = None,
    ) -> None:
        self._options, self._ends, self._given, self._penalty, self._files = options, ends, tokenizer, penalty, files
        grammar: Any = Choices(choices, ends) if choices else None
        if schema := options.form.json_schema:
            grammar = Grammar(schema, tokenizer, ends)
        self._way = Way(options, 0, grammar, marks)
        self._make_grammar = lru_cache(_KEPT_WAYS)(self._make_grammar_of)
        self._read_way = lru_cache(_KEPT_WAYS)(self._read_way_of)

    def begin(self, owner: Any, prompt: np.ndarray, told: str | None = None) -> Sequence:
        """A sequence of which nothing is written yet; one whose options cannot be followed has its error.

        Args:
            owner: Whose it is.
            prompt: Its tokens.
            told: The item's own options, as it came with them.
        """
        try:
            way = self._way if told is None else self._read_way(told)
        except BaseException as error:  # noqa: BLE001 - whatever a library has against options is that item's fate
            return Sequence(owner, prompt, self._way, error=as_exception(error), refused=True)
        draws = None
        if way.options.temperature:
            draws = np.random.default_rng(_digest(prompt, way.options.seed, way.index))
        matcher = way.grammar.begin() if way.grammar else None
        return Sequence(owner, prompt, way, matcher, _may_think(way, prompt), draws)

    def max_new_tokens(self, told: str | None) -> int:
        """Longest answer of an item."""
        return self._options.max_new_tokens if told is None else read_differing(self._options, told)[0].max_new_tokens

    def _read_way_of(self, told: str) -> Way:
        options, index = read_differing(self._options, told)
        if options.form == self._options.form:
            return replace(self._way, options=options, index=index)
        marks = find_marks(load_codec(self._model_files)) if options.reasoning and options.form else None
        return Way(options, index, self._make_grammar(options.form, options.max_new_tokens), marks)

    def _make_grammar_of(self, form: Any, max_new_tokens: int) -> Any:
        if form.json_schema:
            return Grammar(form.json_schema, self._tokenizer, self._ends)
        if not form.choices:
            return None
        codec = load_codec(self._model_files)
        return Choices(encode_choices(codec, form.choices, max_new_tokens=max_new_tokens), self._ends)

    @property
    def _model_files(self) -> ModelFiles:
        if self._files is None:
            raise ValueError("items with options of their own need the model's files")
        return self._files

    @cached_property
    def _tokenizer(self) -> Any:
        from udfs.model.tokenizer import load_tokenizer

        return self._given if self._given is not None else load_tokenizer(self._model_files)

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Write one more token of each sequence.

        Args:
            logits: (B, V) in the order of the sequences.
            sequences: Each is told its token, and whether it ends.
        """
        given, logits = logits, logits.float()
        ours = logits is not given  # and may be changed
        broken = logits.amax(-1).isnan()
        told = [row for row, sequence in enumerate(sequences) if sequence.way.options.logprobs]
        shares = _rows(logits, told).log_softmax(-1) if told else None
        if changing := self._list_changing(sequences):
            logits = self._change(logits if ours else logits.clone(), sequences, changing)
        picked = logits.argmax(-1)
        if drawn := [row for row, sequence in enumerate(sequences) if sequence.draws is not None]:
            picked[drawn] = _draw(_rows(logits, drawn), [sequences[row] for row in drawn])
        if shares is not None:
            _tell(shares, picked[told], [sequences[row] for row in told])
        for sequence, token, bad in zip(sequences, picked.tolist(), broken.tolist(), strict=True):
            if bad:
                sequence.finish = BROKEN
            else:
                self._append(sequence, token)

    def _list_changing(self, sequences: list[Sequence]) -> list[int]:
        """Rows whose logits are changed before a token is picked."""
        if self._penalty != 1.0:
            return list(range(len(sequences)))
        return [row for row, s in enumerate(sequences) if s.way.changes_logits or s.way.grammar]

    def cut(self, ids: list[int]) -> Written:
        """An answer that was written elsewhere, up to its end token."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        finish = LENGTH if end is None else STOP
        return Written(np.array(ids[:end], dtype=np.int32), finish)

    def _hold(self, logits: Tensor, sequences: list[Sequence], rows: list[int]) -> None:
        """Put logits within the grammars; a thought has no end but its mark."""
        by_grammar: dict[int, list[int]] = {}
        for row in rows:
            if sequences[row].way.grammar:
                by_grammar.setdefault(id(sequences[row].way.grammar), []).append(row)
        for alike in by_grammar.values():
            bound = [sequences[row] for row in alike]
            held = bound[0].way.grammar.mask(_rows(logits, alike), [s.matcher for s in bound])
            for place, (row, sequence) in enumerate(zip(alike, bound, strict=True)):
                self._loosen(held[place], logits[row], sequence)
            logits[alike] = held

    def _loosen(self, held: Tensor, logits: Tensor, sequence: Sequence) -> None:
        marks = sequence.way.marks
        if marks and sequence.thinks is None:
            held[marks[0]] = logits[marks[0]]
        elif sequence.thinks:
            held[:] = logits
            held[list(self._ends)] = float("-inf")

    def _append(self, sequence: Sequence, token: int) -> None:
        options = sequence.way.options
        if not _is_thought(sequence, token) and sequence.matcher is not None:
            sequence.matcher.accept(token)
        if token in self._ends:
            sequence.finish = STOP
            return
        sequence.ids.append(token)
        if (sequence.matcher is not None and sequence.matcher.is_over()) or self._stops(sequence):
            sequence.finish = STOP
        elif len(sequence.ids) >= options.max_new_tokens:
            sequence.finish = LENGTH

    def _stops(self, sequence: Sequence) -> bool:
        options, ids = sequence.way.options, sequence.ids
        if not options.stop or len(ids) <= options.min_tokens > 0:
            return False
        first = max(options.min_tokens, len(ids) - sequence.way.tail)
        tail = self._tokenizer.decode(ids[first:], skip_special_tokens=True)
        return any(stop in tail for stop in options.stop)

    def _change(self, logits: Tensor, sequences: list[Sequence], rows: list[int]) -> Tensor:
        """Logits, changed in place, by the model's own penalty and by what items ask for: biases, penalties, grammars.

        Source: the formula of OpenAI's reference of presence and frequency penalties.
        """
        import torch

        if self._penalty != 1.0:
            self._penalize(logits, sequences)
        for row in rows:
            sequence, options = sequences[row], sequences[row].way.options
            line = logits[row]
            if options.logit_bias:
                ids, values = (torch.from_numpy(part).to(line.device) for part in sequence.way.bias)
                line[ids] += values
            if sequence.ids and (options.presence_penalty or options.frequency_penalty):
                seen, counts = np.unique(np.array(sequence.ids, dtype=np.int64), return_counts=True)
                taken = options.presence_penalty + options.frequency_penalty * counts.astype(np.float32)
                where, amounts = torch.from_numpy(seen), torch.from_numpy(taken.astype(np.float32))
                line[where.to(line.device)] -= amounts.to(line.device)
            if len(sequence.ids) < options.min_tokens and sequence.matcher is None:
                line[list(self._ends)] = float("-inf")
        self._hold(logits, sequences, rows)
        return logits

    def _penalize(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Source: transformers, `RepetitionPenaltyLogitsProcessor`."""
        import torch

        for row, sequence in zip(logits, sequences, strict=True):
            seen = np.unique(np.concatenate([sequence.prompt, np.array(sequence.ids, dtype=np.int32)]))
            where = torch.from_numpy(seen.astype(np.int64)).to(row.device)
            scores = row[where]
            row[where] = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _may_think(way: Way, prompt: np.ndarray) -> bool | None:
    """False where nothing is bound or the prompt ends thoughts, True where it begins some."""
    tail = prompt[-_TAIL_OF_PROMPT:].tolist()
    if not way.marks or way.marks[1] in tail:
        return False
    return True if way.marks[0] in tail else None


def _is_thought(sequence: Sequence, token: int) -> bool:
    """Whether a token is one of the thoughts, marks included."""
    marks = sequence.way.marks
    if not marks or sequence.thinks is False:
        return False
    was, (opening, closing) = sequence.thinks, marks
    sequence.thinks = token != closing if was else token == opening
    return bool(was or sequence.thinks)


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """One token each, by a number of its sequence's own, each by its own temperature, top_k and top_p.

    Tokens are put in order among the likeliest alone, and among all of them where the draw may end beyond these: to
    sort a whole vocabulary takes longer than a step of a small model.

    Source: transformers, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, in that order.
    """
    import torch

    options, device = [sequence.way.options for sequence in sequences], logits.device
    weights = logits / torch.tensor([[o.temperature] for o in options], device=device)
    weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    whole = weights.sum(-1, keepdim=True)
    drawn = torch.tensor([[s.draws.random() if s.draws else 0.0] for s in sequences], device=device)
    top_k = torch.tensor([[o.top_k or logits.shape[-1]] for o in options], device=device)
    top_p = torch.tensor([[o.top_p] for o in options], device=device)
    shares, tokens = _find_likeliest(weights)
    shares = shares / whole
    within, covers = top_k <= shares.shape[-1], shares.sum(-1, keepdim=True)
    settled = (within | ((top_p < 1.0) & (covers >= top_p)) | ((top_p >= 1.0) & (drawn < covers)))[:, 0]
    picked = _take(shares, tokens, drawn, top_k, top_p, whole=torch.where(within, torch.nan, 1.0))
    if not settled.all():
        rest = ~settled
        shares, tokens = (weights[rest] / whole[rest]).sort(-1, descending=True)
        picked[rest] = _take(shares, tokens, drawn[rest], top_k[rest], top_p[rest])
    return picked


def _find_likeliest(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The largest weights of each row, descending, and whose they are.

    They are in the chunks with the largest maxima, which are found several times as fast.
    """
    import torch

    rows, size = weights.shape
    chunks = size // _CHUNK
    if chunks <= _LIKELY:
        largest, places = weights.topk(min(_LIKELY, size), -1)
        return largest, places
    body = weights[:, : chunks * _CHUNK].unflatten(-1, (chunks, _CHUNK))
    which = body.amax(-1).topk(_LIKELY, -1).indices
    held = body.gather(1, which[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    where = (which[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=weights.device)).flatten(1)
    if size > chunks * _CHUNK:
        held = torch.cat([held, weights[:, chunks * _CHUNK :]], -1)
        rest = torch.arange(chunks * _CHUNK, size, device=weights.device).expand(rows, -1)
        where = torch.cat([where, rest], -1)
    largest, places = held.topk(_LIKELY, -1)
    return largest, where.gather(1, places)


def _take(
    shares: Tensor, tokens: Tensor, drawn: Tensor, top_k: Tensor, top_p: Tensor, whole: Tensor | None = None
) -> Tensor:
    """(B,) tokens, by numbers that are drawn.

    Args:
        shares: (B, K) of the likeliest tokens, descending.
        tokens: (B, K) which those are.
        drawn: (B, 1) from 0 to 1.
        top_k, top_p: (B, 1).
        whole: (B, 1) what all tokens together have, where K of them are not all; nan takes the sum of those kept.
    """
    import torch

    places = torch.arange(shares.shape[-1], device=shares.device)
    shares = shares.masked_fill(places >= top_k, 0.0)
    sums = shares.cumsum(-1)
    total = sums[:, -1:] if whole is None else torch.where(whole.isnan(), sums[:, -1:], whole)
    kept = ((sums - shares) < top_p * total) | (top_p >= 1.0)
    shares = shares.masked_fill(~kept, 0.0)
    sums = shares.cumsum(-1)
    total = torch.where(top_p < 1.0, sums[:, -1:], total)
    found = torch.searchsorted(sums, (drawn * total).to(sums.dtype), right=True)
    last = (shares > 0).sum(-1, keepdim=True) - 1
    return tokens.gather(1, torch.minimum(found, last).clamp_min(0))[:, 0]


def _tell(shares: Tensor, picked: Tensor, sequences: list[Sequence]) -> None:
    """Keep how likely each token was, by logarithms, and which were the likeliest."""
    values = shares.gather(1, picked[:, None])[:, 0].tolist()
    width = max(sequence.way.options.top_logprobs for sequence in sequences)
    tops, ids = shares.topk(width, -1)
    for sequence, value, top, which in zip(sequences, values, tops.tolist(), ids.tolist(), strict=True):
        asked = sequence.way.options.top_logprobs
        sequence.logprobs.append((value, which[:asked], top[:asked]))


def prompt_seed(prompt: np.ndarray, seed: int, index: int = 0) -> int:
    """A seed of 63 bits that belongs to a prompt, the seed that was asked for and the number of the answer alone."""
    return _digest(prompt, seed, index) >> 65


def _digest(prompt: np.ndarray, seed: int, index: int = 0) -> int:
    """128 bits."""
    key = f"{seed}/{index}" if index else str(seed)
    told = hashlib.blake2b(prompt.astype(np.int32).tobytes(), key=key.encode()[:64])
    return int.from_bytes(told.digest()[:16], "little")
