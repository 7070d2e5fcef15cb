"""A prompt or a chat to what the model writes next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from udfs.asking import Question, read_questions
from udfs.batching import Items
from udfs.chat import has_chat, make_chat
from udfs.codec import Codec, load_codec
from udfs.errors import INVALID_OUTPUT, EngineError, ModelError, RowError
from udfs.generation.written import FINISH_REASONS, STOP, Written
from udfs.limits import NO_LIMIT, position_limit, resolve_max_tokens
from udfs.models import ModelFiles
from udfs.spec import Overflow, ScoreSpec
from udfs.splitting import Chunk, Splitter, find_gaps
from udfs.structured import InvalidAnswerError, answer_type, parse_answer
from udfs.tokenizing import Tokenized, join_ids

if TYPE_CHECKING:
    from udfs.answering import Answered
    from udfs.engine.batch import BatchMaker
    from udfs.tasks import Forward

_Told = tuple[str, int]  # a text, and how it ended
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
_DEFAULT_TOKENS = 2048  # of a model without a table of positions


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


class TextGeneration:
    """What a model writes to a prompt, or as the next message of a chat; once for each variant or language.

    An answer that must be one of `choices` or match `json_schema` and does not is no answer.
    """

    per_token = False
    generates = True

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        check_writes(files, spec.task)
        check_ways(files, spec)
        self._spec, self._files = spec, files
        self.units_per_text = max(1, len(spec.asked_for))
        self.max_tokens = resolve_prompt_tokens(files, spec)
        self.fields = _make_fields(spec)
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

    def questions(self, text: str) -> list[Question]:
        """What the model is asked about a text."""
        return read_questions(text, self._spec)

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

    def load(self, device: str, precision: str, make_batch: BatchMaker) -> Forward:
        raise EngineError(f"{self._spec.task} has no micro-batches of vectors; the engine writes for it")

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        raise EngineError(f"{self._spec.task} gives no vectors; its answers are read with `read`")

    def read(self, written: Sequence[Written | None], tokenized: Tokenized) -> Answers:
        """Worker: what was written to the items of N texts, to columns and failures.

        Args:
            written: An answer an item; None where there is none, so that the item's text has failed before.
            tokenized: Which items are whose.
        """
        decoded = iter(self.codec.decode([w.ids for w in written if w]))
        cut = [_cut_at(next(decoded), w.finish, self._spec.stop) if w else None for w in written]
        told = [self._join(cut[start:end], tokenized, start) for start, end in pairwise(tokenized.units.tolist())]
        values: list[Any] = [None] * len(told)
        failures: dict[int, RowError] = {}
        for unit, answer in enumerate(told):
            try:
                values[unit] = self._check(answer[0]) if answer else None
            except InvalidAnswerError:
                failures[unit // self.units_per_text] = INVALID_OUTPUT
        return Answers(self._make_columns(told, values), failures)

    def ask_on(self, answered: Answered, tokenized: Tokenized) -> More | None:
        """Worker: what is to be asked once more, now that there are answers."""
        return None

    @property
    def _is_chat(self) -> bool:
        return bool(self._spec.messages)

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
        if self._spec.choices and text.strip() not in self._spec.choices:
            raise InvalidAnswerError("none of the choices")
        return parse_answer(text, self._spec.json_schema) if self._spec.json_schema else None

    def _make_columns(self, answers: list[_Told | None], values: list[Any]) -> list[pa.Array]:
        texts: list[Any] = [answer and (answer[0].strip() if self._spec.choices else answer[0]) for answer in answers]
        reasons = [answer and FINISH_REASONS[min(answer[1], len(FINISH_REASONS) - 1)] for answer in answers]
        columns = [texts, reasons, values][: len(self.fields)]
        names, size = self._spec.asked_for, self.units_per_text
        if not names:
            return [pa.array(column, field.type) for column, field in zip(columns, self.fields, strict=True)]
        return [
            pa.array(
                [list(zip(names, column[i : i + size], strict=True)) for i in range(0, len(column), size)], field.type
            )
            for column, field in zip(columns, self.fields, strict=True)
        ]


def check_writes(files: ModelFiles, task: str) -> None:
    """Refuse a model that cannot write.

    Raises:
        ModelError: Its architecture has no head for it.
    """
    kinds = files.config.get("architectures") or ["an unnamed architecture"]
    if not any(kind.endswith(_WRITERS) for kind in kinds):
        raise ModelError(
            f"model {files.name!r} is {', '.join(kinds)}, which cannot write; {task} needs a …ForCausalLM or a "
            "…ForConditionalGeneration"
        )


def check_ways(files: ModelFiles, spec: ScoreSpec) -> None:
    """Refuse ways of writing that the model's kind does not know.

    Raises:
        ModelError: vLLM was asked for an encoder-decoder, or beams of a decoder.
    """
    encodes = files.config.get("is_encoder_decoder")
    if spec.engine == "vllm" and encodes:
        raise ModelError(
            f"model {files.name!r} is an encoder-decoder, which engine 'vllm' does not run; take `engine: auto`"
        )
    if spec.num_beams > 1 and not encodes:
        raise ModelError(
            f"model {files.name!r} is a decoder, and num_beams is for encoder-decoders; leave it out, or draw with a "
            "temperature"
        )


def check_has_chat(files: ModelFiles, task: str) -> None:
    """Refuse a decoder that cannot be told what to do.

    Raises:
        ModelError: It has no chat template.
    """
    if not has_chat(files):
        raise ModelError(
            f"model {files.name!r} has no chat template, and {task} by a decoder is asked in a chat; take an instruct "
            "model, or text-generation with a prompt of your own"
        )


def resolve_prompt_tokens(files: ModelFiles, spec: ScoreSpec) -> int:
    """Longest prompt: what was asked for, or what the model reads beside an answer.

    Raises:
        ModelError: The model has no room for prompt and answer.
    """
    limit = position_limit(files)
    if files.config.get("is_encoder_decoder"):
        return resolve_max_tokens(files, spec.max_tokens)
    if limit >= NO_LIMIT:
        return spec.max_tokens or _DEFAULT_TOKENS
    if spec.max_new_tokens >= limit or (spec.max_tokens or 0) + spec.max_new_tokens > limit:
        raise ModelError(
            f"model {files.name!r} has room for {limit} tokens, prompt and answer together, but max_tokens is "
            f"{spec.max_tokens or 'open'} and max_new_tokens {spec.max_new_tokens}"
        )
    return spec.max_tokens or limit - spec.max_new_tokens


def _make_items(prompts: Sequence[_Prompt]) -> Items:
    """Prompts as items; tokens that an answer begins with come last, and are of type 1."""
    flat, offsets = join_ids([[*prompt.ids, *prompt.forced] for prompt in prompts])
    if not any(prompt.forced for prompt in prompts):
        return Items(flat, offsets)
    types = np.zeros(len(flat), dtype=np.int32)
    for prompt, end in zip(prompts, offsets[1:].tolist(), strict=True):
        types[end - len(prompt.forced) : end] = 1
    return Items(flat, offsets, types)


def _make_fields(spec: ScoreSpec) -> tuple[pa.Field, ...]:
    kinds: list[tuple[str, str, pa.DataType]] = [
        ("text", "texts", pa.string()),
        ("finish_reason", "finish_reasons", pa.string()),
    ]
    if spec.json_schema is not None:
        kinds.append(("answer", "answers", answer_type(json.loads(spec.json_schema))))
    if spec.asked_for:
        return tuple(pa.field(several, pa.map_(pa.string(), kind)) for _, several, kind in kinds)
    return tuple(pa.field(one, kind) for one, _, kind in kinds)


def _cut_at(text: str, finish: int, stop: Sequence[str]) -> _Told:
    """A text up to the first stop string, without the one space that a tokenizer puts before."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    if places:
        text, finish = text[: min(places)], STOP
    return text.removeprefix(" "), finish
