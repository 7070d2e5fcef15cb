"""What the tasks share whose model writes: questions become prompts, what was written becomes answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.errors import EngineError, RowError, SpecError, bad_chat_template, bad_options
from udfs.model.files import ModelFiles
from udfs.spec import Overflow, ScoreSpec
from udfs.tasks.answers import Told, answer_columns, answer_fields, check_answer
from udfs.tasks.row_options import RowOptionsError, differing, read_differing, resolve_options, unpack_text
from udfs.tasks.writing_options import (
    WritingOptions,
    check_ways,
    check_writes,
    prompt_tokens_beside,
    resolve_prompt_tokens,
)
from udfs.text.chats import RefusedError, make_chat
from udfs.text.choices import check_choices
from udfs.text.codec import Codec, load_codec
from udfs.text.questions import Question
from udfs.text.reasoning import part_thoughts
from udfs.text.splitting import Chunk, Splitter, find_gaps
from udfs.text.tokenizing import Tokenized, join_ids
from udfs.wire.items import Items
from udfs.wire.written import EMPTY, STOP, Logprobs, Written

_KEPT_OPTIONS = 256  # of rows


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
    told: str | None = None  # how it is to be answered, as `row_options.differing` has it


class Writing(ABC):
    """What a model writes to questions about a text, one for each variant or language.

    A task says in `questions` what they are. An answer that has to have a form and does not have it is no answer.

    Args:
        spec: What is asked of which model.
        files: The model's.

    Raises:
        ModelError: The model cannot write, or not so, or has no room for prompt and answer, or its chat template
            refuses such messages.
        SpecError: Something is for a chat, and this is none.
    """

    per_token = False
    generates = True
    strips_space = True  # the one that a tokenizer puts before an answer
    _is_chat: bool  # questions are messages, which the model's chat template joins
    _roles: tuple[str, ...] = ("user",)  # of the messages of each, as far as they are known before there is a row

    def __init__(self, spec: ScoreSpec[WritingOptions], files: ModelFiles) -> None:
        check_writes(files, spec.task)
        check_ways(files, spec.options)
        self._spec, self._files = spec, files
        self.units_per_text = max(1, len(spec.options.asked_for))
        self.max_tokens = resolve_prompt_tokens(files, spec)
        self.fields = answer_fields(spec.options)
        self._splitters: dict[int, Splitter] = {}
        self._resolve = lru_cache(_KEPT_OPTIONS)(self._resolve_told)
        self._of_item = lru_cache(_KEPT_OPTIONS)(lambda told: read_differing(spec.options, told)[0])
        if self._is_chat:
            self.chat = make_chat(files, spec.options.chat_template_kwargs)
            if self._roles:  # what it has against these for any text, it has now
                refused = self.chat([[(role, "x") for role in self._roles]])[0]
                if isinstance(refused, RefusedError):
                    raise refused
        elif spec.options.chat_template_kwargs:
            raise SpecError("chat_template_kwargs are for a chat template, but what is asked here is no chat")

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
        ways = [self._way_of(text) for text in texts]
        questions = [question for text, _ in ways for question in self.questions(text)]
        rendered = self._render(questions)
        failures = {
            n: bad_chat_template(prompt.raised) for n, prompt in enumerate(rendered) if isinstance(prompt, RefusedError)
        }
        failures |= {n * self.units_per_text: way for n, (_, way) in enumerate(ways) if isinstance(way, RowError)}
        limits = [self.max_tokens if isinstance(way, RowError) else self._limit(way) for _, way in ways]
        ids = self._encode_questions(
            questions, ["" if n in failures else str(prompt) for n, prompt in enumerate(rendered)]
        )
        asked = [[_Prompt(i, q.forced)] if i else [] for i, q in zip(ids, questions, strict=True)]
        truncated = np.array([len(i) > limits[n // self.units_per_text] for n, i in enumerate(ids)], dtype=bool)
        for number in np.flatnonzero(truncated).tolist():
            text = number // self.units_per_text
            try:
                asked[number] = self._fit(questions[number], ids[number], overflows[text], limits[text])
            except RefusedError as error:
                asked[number], failures[number] = [], bad_chat_template(error.raised)
        for number in failures:
            asked[number] = []
        for text, (_, way) in enumerate(ways):
            if isinstance(way, WritingOptions) and (way.n > 1 or way is not self._spec.options):
                asked[text] = _ask_by(self._spec.options, way, asked[text])
        units = np.concatenate([[0], np.cumsum([len(prompts) for prompts in asked], dtype=np.int64)])
        flat = [prompt for prompts in asked for prompt in prompts]
        gaps = [prompt.gap for prompt in flat]
        return Tokenized(_make_items(flat), units, truncated, gaps=gaps, failures=failures)

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
        cut = self._decode(written, tokenized)
        places = list(pairwise(tokenized.units.tolist()))
        ways = [self._of_item(_told_of(tokenized.items, start)) if end > start else None for start, end in places]
        chunked = self._spec.overflow == "chunk"
        several = [cut[start:end] if end - start > 1 and not chunked else None for start, end in places]
        told = [
            self._join(cut[start:end], tokenized, start) if all_ is None else _first_of(all_)
            for (start, end), all_ in zip(places, several, strict=True)
        ]
        candidates = [all_ if all_ is not None else [answer] for all_, answer in zip(several, told, strict=True)]
        return Answers(*answer_columns(self._spec.options, told, candidates, ways, check=self.check))

    def check(self, text: str, way: WritingOptions) -> Any:
        """The value of an answer; see `check_answer`."""
        return check_answer(text, way)

    def _way_of(self, text: str) -> tuple[str, WritingOptions | RowError]:
        """A text without the options that it may come with, and how it is to be answered."""
        if self._spec.options.options_from is None:
            return text, self._spec.options
        inner, told = unpack_text(text)
        return inner, self._resolve(json.dumps(told)) if told else self._spec.options

    def _resolve_told(self, told: str) -> WritingOptions | RowError:
        try:
            way = resolve_options(self._spec, json.loads(told))
            self._check_tokens(way)
        except RowOptionsError as error:
            return bad_options(str(error))
        except SpecError as error:
            return bad_options(error.message)
        return way

    def _check_tokens(self, way: WritingOptions) -> None:
        """Refuse choices that the tokenizer cannot write, and tokens that the model has not."""
        check_choices(self.codec, way.form.choices, max_new_tokens=way.max_new_tokens)
        if way.logit_bias and max(map(int, way.logit_bias)) >= self.codec.size:
            raise RowOptionsError(f"logit_bias names a token that the model has not; it has {self.codec.size}")
        longest = self._files.config.get("max_position_embeddings") if self.encodes else None
        if longest and way.max_new_tokens >= longest:
            raise RowOptionsError(f"max_new_tokens is more than the {longest - 1} tokens that the model writes")

    def _limit(self, way: WritingOptions) -> int:
        if way is self._spec.options:
            return self.max_tokens
        return prompt_tokens_beside(self._files, self._spec, way)

    def ask_on(self, answers: Answers, tokenized: Tokenized) -> More | None:
        """What is to be asked once more, now that there are answers."""
        return None

    def _decode(self, written: Sequence[Written | None], tokenized: Tokenized) -> list[Told | None]:
        """What was written to each item, as a text up to the first stop string, and the thoughts before it."""
        items, thinks = tokenized.items, self._spec.options.reasoning is not None
        decoded = iter([] if thinks else self.codec.decode([w.ids for w in written if w]))
        prompts = np.split(items.ids, items.offsets[1:-1]) if len(items) and thinks else []
        told: list[Told | None] = []
        for item, answer in enumerate(written):
            if answer is None:
                told.append(None)
                continue
            way = self._of_item(_told_of(items, item))
            thoughts, text = part_thoughts(self.codec, answer.ids, prompts[item]) if thinks else (None, next(decoded))
            first = len(self.codec.decode([answer.ids[: way.min_tokens]])[0]) if way.stop and way.min_tokens else 0
            if not self.strips_space and len(answer.ids) and not text.startswith(" "):
                text = " " * self.codec.token_bytes(int(answer.ids[0])).startswith(b" ") + text
            cut = _cut_at(text, answer.finish, way.stop, thoughts, first, strips_space=self.strips_space)
            shown = None if answer.logprobs is None else self._show(answer.ids, answer.logprobs, cut)
            told.append(cut._replace(tokens=len(answer.ids), logprobs=shown))
        return told

    def _show(self, ids: np.ndarray, logprobs: Logprobs, cut: Told) -> list[dict[str, Any]]:
        """What is told of each token; where a stop string cuts an answer, of those that begin before it."""
        shown, length = list[dict[str, Any]](), 0
        for place, token in enumerate(ids.tolist()):
            if cut.stop is not None and length >= len(cut.text.encode()):
                break
            tops = zip(logprobs.top_ids[place].tolist(), logprobs.top_values[place].tolist(), strict=True)
            one = self._show_token(token, float(logprobs.values[place]))
            shown.append(one | {"top": [self._show_token(*top) for top in tops]})
            length += len(one["bytes"])
        return shown

    def _show_token(self, token: int, logprob: float) -> dict[str, Any]:
        written = self.codec.token_bytes(token)
        return {"token": written.decode("utf-8", "replace"), "logprob": logprob, "bytes": written}

    def _render(self, questions: Sequence[Question]) -> list[str | RefusedError]:
        """A prompt for each question, or what the chat template has against its text."""
        chats = iter(self.chat([q.parts for q in questions if q.is_chat]) if self._is_chat else [])
        return [next(chats) if q.is_chat else q.parts[0][1] for q in questions]

    def _encode(self, questions: Sequence[Question]) -> list[list[int]]:
        prompts = self._render(questions)
        if refused := [prompt for prompt in prompts if isinstance(prompt, RefusedError)]:
            raise refused[0]
        return self._encode_prompts([str(prompt) for prompt in prompts])

    def _encode_questions(self, questions: Sequence[Question], prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each question, whose prompt is rendered."""
        return self._encode_prompts(prompts)

    def _encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        return self.codec.encode(prompts, special=not self._is_chat)  # a chat template writes special tokens itself

    def _fit(self, question: Question, ids: list[int], overflow: Overflow, limit: int) -> list[_Prompt]:
        """Prompts that are short enough, in the place of one that is not; none where there is no room."""
        match overflow:
            case "truncate":
                return [_Prompt(cut, question.forced)] if (cut := self._shorten(question, ids, limit)) else []
            case "chunk":
                return self._chunk(question, limit)
        return []

    def _chunk(self, question: Question, limit: int) -> list[_Prompt]:
        """The question about each chunk of its document; room is made for what a prompt takes around it."""
        room = self._room - (self.max_tokens - limit)
        while room > 0:
            (chunks,) = self._splitter(room)([question.document])
            ids = self._encode([question.about(chunk.text) for chunk in chunks])
            excess = max(map(len, ids), default=0) - limit
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

    def _join(self, answers: list[Told | None], tokenized: Tokenized, start: int) -> Told | None:
        """The answers to a text's chunks as one, apart as the chunks are; None where one is missing."""
        told = [answer for answer in answers if answer]
        if not told or len(told) < len(answers):
            return None
        if len(told) == 1:
            return told[0]
        gaps = (tokenized.gaps or [])[start : start + len(told)]
        parts = [part for gap, answer in zip(gaps, told, strict=True) for part in (gap, answer.text.strip())]
        text, thoughts = "".join(parts).strip(), [answer.thoughts for answer in told if answer.thoughts is not None]
        finish = max((answer.finish for answer in told if answer.finish != EMPTY), default=EMPTY)
        return Told(text, finish, "\n\n".join(thoughts) if thoughts else None)

    def _shorten(self, question: Question, ids: list[int], limit: int) -> list[int]:
        """A prompt whose document is cut until the whole fits; nothing where the rest is too long."""
        ends = self.codec.token_ends(question.document)
        kept = len(ends) - (len(ids) - limit)
        while kept > 0:
            ids = self._encode([question.cut(ends[kept - 1])])[0]
            if len(ids) <= limit:
                return ids
            kept -= len(ids) - limit
        return []


def _make_items(prompts: Sequence[_Prompt]) -> Items:
    """Prompts as items; tokens that an answer begins with come last, and are of type 1."""
    flat, offsets = join_ids([[*prompt.ids, *prompt.forced] for prompt in prompts])
    options = np.array([*(prompt.told for prompt in prompts), None], dtype=object)[:-1]
    own = options if any(prompt.told for prompt in prompts) else None
    if not any(prompt.forced for prompt in prompts):
        return Items(flat, offsets, None, own)
    types = np.zeros(len(flat), dtype=np.int32)
    for prompt, end in zip(prompts, offsets[1:].tolist(), strict=True):
        types[end - len(prompt.forced) : end] = 1
    return Items(flat, offsets, types, own)


def _ask_by(job: WritingOptions, way: WritingOptions, prompts: list[_Prompt]) -> list[_Prompt]:
    """A text's prompts with how they are to be answered, each as many times as there are to be answers."""
    return [replace(p, told=differing(job, way, index=index)) for p in prompts for index in range(way.n)]


def _told_of(items: Items, item: int) -> str | None:
    return None if items.options is None else items.options[item]


def _first_of(answers: list[Told | None]) -> Told | None:
    """The first of several answers; none where one of them is missing."""
    return answers[0] if answers and None not in answers else None


def _cut_at(
    text: str,
    finish: int,
    stop: Sequence[str],
    thoughts: str | None = None,
    first: int = 0,
    *,
    strips_space: bool = True,
) -> Told:
    """A text up to the first stop string from a place on, without the one space that a tokenizer puts before."""
    places = [(place, string) for string in stop if (place := text.find(string, first)) >= 0]
    before = " " if strips_space else ""
    if not places:
        return Told(text.removeprefix(before), finish, thoughts)
    place, string = min(places, key=lambda found: found[0])
    text = text[:place]
    return Told(text.removeprefix(before), STOP if text.strip() else EMPTY, thoughts, string)
