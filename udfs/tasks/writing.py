"""What the tasks share whose model writes: questions become prompts, what was written becomes answers."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.errors import INVALID_OUTPUT, EngineError, RowError
from udfs.model.files import ModelFiles
from udfs.spec import Overflow, ScoreSpec
from udfs.tasks.writing_options import WritingOptions, check_ways, check_writes, resolve_prompt_tokens
from udfs.text.chats import make_chat
from udfs.text.codec import Codec, load_codec
from udfs.text.questions import Question
from udfs.text.schemas import InvalidAnswerError, answer_type, parse_answer
from udfs.text.splitting import Chunk, Splitter, find_gaps
from udfs.text.tokenizing import Tokenized, join_ids
from udfs.wire.items import Items
from udfs.wire.written import FINISH_REASONS, STOP, Written

_HALVES, _SURROGATES = re.compile(r"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
_Told = tuple[str, int]  # a text, and how it ended


@dataclass(frozen=True)
class Answers:
    """What was written to N texts.

    Args:
        columns: An array of N for each of the task's fields.
        failures: Text number -> why its answer is none.
    """

    columns: list[pa.Array]
    failures: dict[int, RowError]


@dataclass(frozen=True)
class More:
    """What is to be asked about some texts when they have an answer each.

    Args:
        texts: (M,) which texts.
        tokenized: What is asked; unit m is about texts[m].
    """

    texts: np.ndarray
    tokenized: Tokenized


@dataclass(frozen=True)
class _Prompt:
    """Token ids of a prompt, those that its answer begins with, and what stands before its chunk in the document."""

    ids: list[int]
    forced: tuple[int, ...] = ()
    gap: str = ""


class Writing(ABC):
    """What a model writes to questions about a text, one for each variant or language.

    A task says in `questions` what they are. An answer that has to have a form and does not have it is no answer.

    Args:
        spec: What is asked of which model.
        files: The model's.

    Raises:
        ModelError: The model cannot write, or not so, or has no room for prompt and answer.
    """

    per_token = False
    generates = True
    _is_chat: bool  # questions are messages, which the model's chat template joins

    def __init__(self, spec: ScoreSpec[WritingOptions], files: ModelFiles) -> None:
        check_writes(files, spec.task)
        check_ways(files, spec.options)
        self._spec, self._files, self._form = spec, files, spec.options.form
        self.units_per_text = max(1, len(spec.options.asked_for))
        self.max_tokens = resolve_prompt_tokens(files, spec)
        self.fields = _make_fields(spec.options)
        self._splitters: dict[int, Splitter] = {}
        if self._is_chat:
            self.chat = make_chat(files)

    @property
    def encodes(self) -> bool:
        """The model reads with an encoder and writes with a decoder."""
        return bool(self._files.config.get("is_encoder_decoder"))

    @cached_property
    def codec(self) -> Codec:
        return load_codec(self._files)

    @abstractmethod
    def questions(self, text: str) -> list[Question]:
        """What the model is asked about a text."""

    def tokenize(self, texts: list[str]) -> Tokenized:
        if self._spec.overflow == "chunk":
            self._splitter(self._room)  # what leaves no room is told before there is a long text
        return self._tokenize(texts, [self._spec.overflow] * len(texts))

    def _tokenize(self, texts: list[str], overflows: Sequence[Overflow]) -> Tokenized:
        """Texts to items, with what is to become of each one that is too long."""
        questions = [question for text in texts for question in self.questions(text)]
        ids = self._encode(questions)
        asked = [[_Prompt(i, q.forced)] if i else [] for i, q in zip(ids, questions, strict=True)]
        truncated = np.array([len(i) > self.max_tokens for i in ids], dtype=bool)
        for number in np.flatnonzero(truncated).tolist():
            asked[number] = self._fit(questions[number], ids[number], overflows[number // self.units_per_text])
        units = np.concatenate([[0], np.cumsum([len(prompts) for prompts in asked], dtype=np.int64)])
        flat = [prompt for prompts in asked for prompt in prompts]
        return Tokenized(_make_items(flat), units, truncated, gaps=[prompt.gap for prompt in flat])

    def show(self, items: Items) -> list[str]:
        """Items as the model reads them, special tokens included."""
        return [self.codec.show(part) for part in np.split(items.ids, items.offsets[1:-1])] if len(items) else []

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        raise EngineError(f"{self._spec.task} gives no vectors; its answers are read with `read`")

    def read(self, written: Sequence[Written | None], tokenized: Tokenized) -> Answers:
        """What was written to the items of N texts, to columns and failures.

        Args:
            written: An answer an item; None where there is none, so that the item's text has failed before.
            tokenized: Which items are whose.
        """
        decoded = iter(self.codec.decode([w.ids for w in written if w]))
        cut = [_cut_at(next(decoded), w.finish, self._spec.options.stop) if w else None for w in written]
        told = [self._join(cut[start:end], tokenized, start) for start, end in pairwise(tokenized.units.tolist())]
        values: list[Any] = [None] * len(told)
        failures: dict[int, RowError] = {}
        for unit, answer in enumerate(told):
            try:
                values[unit] = self._check(answer[0]) if answer else None
            except InvalidAnswerError:
                failures[unit // self.units_per_text] = INVALID_OUTPUT
        return Answers(self._make_columns(told, values), failures)

    def ask_on(self, answers: Answers, tokenized: Tokenized) -> More | None:
        """What is to be asked once more, now that there are answers."""
        return None

    def _render(self, question: Question) -> str:
        return self.chat(question.parts) if question.is_chat else question.parts[0][1]

    def _encode(self, questions: Sequence[Question]) -> list[list[int]]:
        # a chat template writes special tokens itself
        return self.codec.encode([self._render(q) for q in questions], special=not self._is_chat)

    def _fit(self, question: Question, ids: list[int], overflow: Overflow) -> list[_Prompt]:
        """Prompts that are short enough, in the place of one that is not; none where there is no room."""
        match overflow:
            case "truncate":
                return [_Prompt(cut, question.forced)] if (cut := self._shorten(question, ids)) else []
            case "chunk":
                return self._chunk(question)
        return []

    def _chunk(self, question: Question) -> list[_Prompt]:
        """The question about each chunk of its document; room is made for what a prompt takes around it."""
        room = self._room
        while room > 0:
            (chunks,) = self._splitter(room)([question.document])
            ids = self._encode([question.about(chunk.text) for chunk in chunks])
            excess = max(map(len, ids), default=0) - self.max_tokens
            if excess <= 0:
                gaps = self._gaps(question.document, chunks)
                return [_Prompt(i, question.forced, gap) for i, gap in zip(ids, gaps, strict=True) if i]
            room -= excess
        return []

    def _gaps(self, document: str, chunks: Sequence[Chunk]) -> list[str]:
        """What is to stand before the answer to each chunk."""
        return find_gaps(document, chunks)

    @cached_property
    def _room(self) -> int:
        """Tokens of a document that fit into a prompt."""
        example = "x"  # some templates leave spaces out where there is no document
        longest = max(map(len, self._encode(self.questions(example))))
        return self.max_tokens - (longest - len(self.codec.encode([example], special=False)[0]))

    def _splitter(self, room: int) -> Splitter:
        if room not in self._splitters:
            overlap = self._spec.chunk_overlap if room == self._room else min(self._spec.chunk_overlap, room // 2)
            self._splitters[room] = self.codec.make_splitter(room, overlap=overlap)
        return self._splitters[room]

    def _join(self, answers: list[_Told | None], tokenized: Tokenized, start: int) -> _Told | None:
        """The answers to a text's chunks as one, apart as the chunks are; None where one is missing."""
        told = [answer for answer in answers if answer]
        if not told or len(told) < len(answers):
            return None
        if len(told) == 1:
            return told[0]
        gaps = (tokenized.gaps or [])[start : start + len(told)]
        parts = [part for gap, (text, _) in zip(gaps, told, strict=True) for part in (gap, text.strip())]
        return "".join(parts).strip(), max(finish for _, finish in told)

    def _shorten(self, question: Question, ids: list[int]) -> list[int]:
        """A prompt whose document is cut until the whole fits; nothing where the rest is too long."""
        ends = self.codec.token_ends(question.document)
        kept = len(ends) - (len(ids) - self.max_tokens)
        while kept > 0:
            ids = self._encode([question.cut(ends[kept - 1])])[0]
            if len(ids) <= self.max_tokens:
                return ids
            kept -= len(ids) - self.max_tokens
        return []

    def _check(self, text: str) -> Any:
        if self._form.choices and text.strip() not in self._form.choices:
            raise InvalidAnswerError("none of the choices")
        if not self._form.json_schema:
            return None
        value = parse_answer(text, self._form.json_schema)
        if _HALVES.search(text) and _SURROGATES.search(json.dumps(value, ensure_ascii=False)):
            raise InvalidAnswerError("half of a surrogate pair, which no UTF-8 holds")
        return value

    def _make_columns(self, answers: list[_Told | None], values: list[Any]) -> list[pa.Array]:
        texts: list[Any] = [answer and (answer[0].strip() if self._form.choices else answer[0]) for answer in answers]
        reasons = [answer and FINISH_REASONS[min(answer[1], len(FINISH_REASONS) - 1)] for answer in answers]
        columns = [texts, reasons, values][: len(self.fields)]
        names, size = self._spec.options.asked_for, self.units_per_text
        if not names:
            return [pa.array(column, field.type) for column, field in zip(columns, self.fields, strict=True)]
        return [
            pa.array(
                [list(zip(names, column[i : i + size], strict=True)) for i in range(0, len(column), size)], field.type
            )
            for column, field in zip(columns, self.fields, strict=True)
        ]


def _make_items(prompts: Sequence[_Prompt]) -> Items:
    """Prompts as items; tokens that an answer begins with come last, and are of type 1."""
    flat, offsets = join_ids([[*prompt.ids, *prompt.forced] for prompt in prompts])
    if not any(prompt.forced for prompt in prompts):
        return Items(flat, offsets)
    types = np.zeros(len(flat), dtype=np.int32)
    for prompt, end in zip(prompts, offsets[1:].tolist(), strict=True):
        types[end - len(prompt.forced) : end] = 1
    return Items(flat, offsets, types)


def _make_fields(options: WritingOptions) -> tuple[pa.Field, ...]:
    kinds: list[tuple[str, str, pa.DataType]] = [
        ("text", "texts", pa.string()),
        ("finish_reason", "finish_reasons", pa.string()),
    ]
    if options.form.json_schema is not None:
        kinds.append(("answer", "answers", answer_type(json.loads(options.form.json_schema))))
    if options.asked_for:
        return tuple(pa.field(several, pa.map_(pa.string(), kind)) for _, several, kind in kinds)
    return tuple(pa.field(one, kind) for one, _, kind in kinds)


def _cut_at(text: str, finish: int, stop: Sequence[str]) -> _Told:
    """A text up to the first stop string, without the one space that a tokenizer puts before."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    if places:
        text, finish = text[: min(places)], STOP
    return text.removeprefix(" "), finish
