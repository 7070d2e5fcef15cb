"""The next token of each sequence: from logits to a token, and whether the answer ends with it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.errors import as_exception
from udfs.generation.choices import Choices
from udfs.generation.drawing import draw, find_best
from udfs.generation.found import Found
from udfs.generation.grammar import Grammar, Matcher
from udfs.generation.penalties import follow_wishes, list_seen, penalize
from udfs.generation.sequences import RECENT, Sequence, Way, digest, note_ids, retell, tell
from udfs.model.files import ModelFiles
from udfs.tasks.row_options import read_differing
from udfs.tasks.writing_options import WritingOptions
from udfs.text.choices import encode_choices
from udfs.text.codec import load_codec
from udfs.text.reasoning import find_marks
from udfs.wire.written import BROKEN, LENGTH, STOP, Written

if TYPE_CHECKING:
    from torch import Tensor

_TAIL_OF_PROMPT = 8  # tokens that may hold a mark of thoughts
_KEPT_WAYS = 512  # of items with options of their own


@dataclass(frozen=True, eq=False)
class _Picked:
    """A sequence, the row of the logits after its last token, and the tokens that were run after that."""

    sequence: Sequence
    row: int
    drafted: list[int]

    def goes_on(self, depth: int) -> bool:
        """So many drafts were right, and the next is."""
        if depth >= len(self.drafted) or self.sequence.finish is not None:
            return False
        return self.sequence.ids[-1] == self.drafted[depth]


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
        self._end_ids = np.array([*ends], dtype=np.int64)
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
            draws = np.random.default_rng(digest(prompt, way.options.seed, way.index))
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
            logits: (B, V) after the last token of each.
            sequences: Each is told its token, and whether it ends.
        """
        told = tell(sequences)
        self.take(self.look(logits, sequences, told), sequences, told)
        note_ids(told, list(range(len(sequences))), sequences)

    def look(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        told: np.ndarray,
        *,
        drafts: list[list[int]] | None = None,
        also: Tensor | None = None,
    ) -> Found:
        """What logits say at once, by the model's own penalty. Nothing waits for the device here.

        Args:
            logits: (R, V) after the last token of each sequence, and after each of its drafts. A penalty may change
                them in place.
            sequences: Whose they are.
            told: (B,) of each.
            drafts: Of each sequence, the tokens that were run after its last; None for none.
            also: (R,) int64 on the device, the last token of each, where the host does not know it yet.
        """
        if self._penalty == 1.0:
            return Found(logits)
        penalized = logits.float().contiguous()
        if penalized is logits and any(sequence.way.options.logprobs for sequence in sequences):
            penalized = logits.clone()
        seen = list_seen(sequences, told, size=logits.shape[-1], drafts=drafts)
        penalize(penalized, seen, self._penalty, also=also)
        return Found(logits, penalized)

    def take(
        self,
        found: Found,
        sequences: list[Sequence],
        told: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        drafts: list[list[int]] | None = None,
    ) -> bool:
        """Write one more token of each sequence, and one more after each of its drafts that came out as drafted.

        Each token is picked as it would be without drafts, one after the other, by the same numbers. Python looks only
        at those sequences that are not free, are drafted, or end.

        Args:
            found: By the logits after the last token of each sequence, and after each of its drafts.
            sequences: Each is told its tokens, and whether it ends.
            told: (B,) of each, which is brought up to date. It has the tokens of those that are free and go on: their
                ids follow later.
            rows: (B,) where the logits of each are, if not one after the other.
            drafts: Of each sequence, the tokens that were run after its last; None for none.

        Returns:
            Whether logits were no numbers, be it after a draft that was not taken.
        """
        best, broken = found.read()
        free = told["free"]
        if drafts:
            counts = np.array([*map(len, drafts)])
            rows, free = np.cumsum(counts + 1) - counts - 1, free & (counts == 0)
        tokens, no_number = (best, broken) if rows is None else (best[rows], broken[rows])
        self._take_best(tokens, no_number, free, sequences, told)
        if not free.all():
            places = np.flatnonzero(~free).tolist()
            note_ids(told, places, sequences)
            self._take_others(found, best, broken, places, sequences, rows=rows, drafts=drafts)
            retell(told, places, sequences)
        return bool(broken.any())

    def _take_best(
        self, tokens: np.ndarray, broken: np.ndarray, free: np.ndarray, sequences: list[Sequence], told: np.ndarray
    ) -> None:
        """Write the likeliest token of those that are free."""
        ends = broken | (tokens[:, None] == self._end_ids).any(1)
        goes = np.flatnonzero(free & ~ends)
        fresh, taken = told["fresh"][goes], tokens[goes]
        told["recent"][goes, fresh] = taken
        told["fresh"][goes], told["last"][goes] = fresh + 1, taken
        told["left"][goes] -= 1
        long = goes[told["left"][goes] <= 0].tolist()
        for place in long:
            sequences[place].finish = LENGTH
        ended = np.flatnonzero(free & ends).tolist()
        for place in ended:
            sequences[place].finish = BROKEN if broken[place] else STOP
        told["over"][long + ended] = True
        note_ids(told, [*long, *ended, *goes[fresh + 1 >= RECENT].tolist()], sequences)

    def _take_others(
        self,
        found: Found,
        best: np.ndarray,
        broken: np.ndarray,
        places: list[int],
        sequences: list[Sequence],
        *,
        rows: np.ndarray | None,
        drafts: list[list[int]] | None,
    ) -> None:
        tokens, no_numbers, others = best.tolist(), broken.tolist(), []
        for place in places:
            sequence, drafted = sequences[place], drafts[place] if drafts else []
            row = place if rows is None else int(rows[place])
            if sequence.way.is_free:
                self._take_drafted(sequence, tokens, no_numbers, row, drafted)
            else:
                others.append(_Picked(sequence, row, drafted))
        self._pick_in_rounds(found, tokens, no_numbers, others)

    def prepare(self, sequences: list[Sequence]) -> None:
        """Make the masks of schemas ahead, while a GPU still computes the logits."""
        held: dict[Grammar, list[Matcher]] = {}
        for sequence in sequences:
            if isinstance(sequence.matcher, Matcher):
                held.setdefault(sequence.way.grammar, []).append(sequence.matcher)
        for grammar, matchers in held.items():
            grammar.prepare(matchers)

    def _take_drafted(
        self, sequence: Sequence, best: list[int], broken: list[bool], row: int, drafted: list[int]
    ) -> None:
        ids, most = sequence.ids, sequence.way.most
        for place in range(row, row + len(drafted) + 1):
            token = best[place]
            if broken[place]:
                sequence.finish = BROKEN
            elif token in self._ends:
                sequence.finish = STOP
            else:
                ids.append(token)
                if len(ids) >= most:
                    sequence.finish = LENGTH
                elif place - row < len(drafted) and token == drafted[place - row]:
                    continue
            return

    def _pick_in_rounds(self, found: Found, best: list[int], broken: list[bool], waiting: list[_Picked]) -> None:
        """A token of each, then a second of those whose first is the one that was drafted, and so on."""
        depth = 0
        while waiting:
            rest = []
            for one in waiting:
                row = one.row + depth
                if broken[row]:
                    one.sequence.finish = BROKEN
                elif (token := self._find_without_mask(one.sequence, best[row])) is not None:
                    self._append(one.sequence, token)
                else:
                    rest.append(one)
            if rest:
                self._pick_singly(found, [one.row + depth for one in rest], [one.sequence for one in rest])
            waiting = [one for one in waiting if one.goes_on(depth)]
            depth += 1

    def _find_without_mask(self, sequence: Sequence, best: int) -> int | None:
        """The token to take where no mask has to be made for it: it is forced, or the likeliest is let through."""
        if not sequence.way.is_greedy:
            return None
        if sequence.matcher is None:
            return best
        if sequence.thinks is not False:
            return None
        if forced := sequence.matcher.forced(1):
            return forced[0]
        return best if sequence.matcher.allows(best) else None

    def _pick_singly(self, found: Found, rows: list[int], sequences: list[Sequence]) -> None:
        """Write one token of each sequence, by rows of logits that are numbers."""
        given = _rows(found.penalized, rows)
        logits = given.float()
        told = [row for row, sequence in enumerate(sequences) if sequence.way.options.logprobs]
        shares = _rows(found.logits, [rows[row] for row in told]).float().log_softmax(-1) if told else None
        if any(sequence.way.changes_logits or sequence.way.grammar for sequence in sequences):
            logits = (logits.clone() if logits is found.penalized else logits).contiguous()
            follow_wishes(logits, sequences, self._end_ids)
            self._hold(logits, sequences)
        picked, _ = find_best(logits)
        if drawn := [row for row, sequence in enumerate(sequences) if sequence.draws is not None]:
            picked[drawn] = draw(_rows(logits, drawn), [sequences[row] for row in drawn])
        if shares is not None:
            _tell(shares, picked[told], [sequences[row] for row in told])
        for sequence, token in zip(sequences, picked.tolist(), strict=True):
            self._append(sequence, token)

    def cut(self, ids: list[int]) -> Written:
        """An answer that was written elsewhere, up to its end token."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        finish = LENGTH if end is None else STOP
        return Written(np.array(ids[:end], dtype=np.int32), finish)

    def _hold(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Put logits within the grammars; a thought has no end but its mark."""
        by_grammar: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            if sequence.way.grammar:
                by_grammar.setdefault(id(sequence.way.grammar), []).append(row)
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


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    """Some rows, ascending; the tensor itself where they are all."""
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


def _tell(shares: Tensor, picked: Tensor, sequences: list[Sequence]) -> None:
    """Keep how likely each token was, by logarithms, and which were the likeliest."""
    values = shares.gather(1, picked[:, None])[:, 0].tolist()
    width = max(sequence.way.options.top_logprobs for sequence in sequences)
    tops, ids = shares.topk(width, -1)
    for sequence, value, top, which in zip(sequences, values, tops.tolist(), ids.tolist(), strict=True):
        asked = sequence.way.options.top_logprobs
        sequence.logprobs.append((value, which[:asked], top[:asked]))
