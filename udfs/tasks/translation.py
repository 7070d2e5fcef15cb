"""A text to the same in another language, asked for as the model's family wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from udfs.errors import SpecError
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec, list_problems, option
from udfs.tasks.writing import Writing
from udfs.tasks.writing_options import WritingOptions, check_has_chat
from udfs.text.codec import Codec, TransformersCodec, load_codec
from udfs.text.languages import language_token, marian_prefix, name_language
from udfs.text.questions import Question, ask

_ASKED = "Translate the following text from {} to {}. Answer with the translation alone.\n\n"
_ASKED_OPEN = "Translate the following text to {}. Answer with the translation alone.\n\n"
_MULTILINGUAL = {"m2m_100", "mbart"}
_T5 = {"t5", "longt5"}


def check_languages(value: Any) -> Any:
    """Refuse what is no language and no list of them, as YAML's `no` is.

    Raises:
        ValueError: It is neither.
    """
    several = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    if value is None or isinstance(value, str) or several:
        return value
    raise ValueError("give a language, or a list of them; `no` is one in quotes alone")


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(WritingOptions):
    """What translation takes."""

    task: ClassVar[str] = "translation"
    chunks: ClassVar[Literal["joined"]] = "joined"

    source_lang: str | None = option(
        None, "The language of the texts, as the model calls it; NLLB, mBART, M2M and T5 need it.", for_engine=False
    )
    target_lang: str | tuple[str, ...] | None = option(
        None,
        "The language to translate into, as the model calls it: `deu_Latn` of NLLB, `de_DE` of mBART, `de` of M2M; of "
        "T5 and of chats, `de` or `German`. A Marian model for one pair needs none. Of several, each text is "
        "translated into each, and the answers are maps by them.",
        for_engine=False,
        check=check_languages,
    )

    @property
    def asked_for(self) -> tuple[str, ...]:
        return self.target_lang if isinstance(self.target_lang, tuple) else ()

    @property
    def targets(self) -> Sequence[str | None]:
        """Each language that a text is translated into."""
        return self.target_lang if isinstance(self.target_lang, tuple) else (self.target_lang,)

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        if self.target_lang == ():
            yield "target_lang is an empty list"
        yield from list_problems("target_lang", self.asked_for)


class Translation(Writing):
    """Marian wants the target before the text, M2M, NLLB and mBART a source and a forced token, T5 a sentence.

    Other encoder-decoders get the text alone; a decoder is asked in a chat. A text is asked for once in each target.
    """

    def __init__(self, spec: ScoreSpec[TranslationOptions], files: ModelFiles) -> None:
        self._kind, self._languages = files.config.get("model_type"), spec.options
        self._is_chat = not files.config.get("is_encoder_decoder")
        if self._is_chat:
            check_has_chat(files, spec.task)
        super().__init__(spec, files)
        self._check_languages()

    @cached_property
    def codec(self) -> Codec:
        return load_codec(self._files, self._languages.source_lang if self._kind in _MULTILINGUAL else None)

    def questions(self, text: str) -> list[Question]:
        role = "user" if self._is_chat else ""
        return [ask(text, role=role, before=before, forced=forced) for before, forced in self._ways]

    @cached_property
    def _ways(self) -> list[tuple[str, tuple[int, ...]]]:
        """Of each target, what stands before a text, and what its translation begins with."""
        return [(self._before(target), self._forced(target)) for target in self._languages.targets]

    def _forced(self, target: str | None) -> tuple[int, ...]:
        if self._kind not in _MULTILINGUAL or not isinstance(self.codec, TransformersCodec):
            return ()
        token = language_token(self.codec, target, self._files, "target_lang")
        # an mBART for one pair starts with its language anyway
        return () if token == self._files.config.get("decoder_start_token_id") else (token,)

    def _before(self, target: str | None) -> str:
        source = self._languages.source_lang
        if self._kind == "marian" and isinstance(self.codec, TransformersCodec):
            return marian_prefix(self.codec, target, self._files)
        if self._kind in _T5:
            return f"translate {name_language(source or '')} to {name_language(target or '')}: "
        if self._is_chat:
            return write_request(source, target or "")
        return ""

    def _check_languages(self) -> None:
        """Refuse languages that the model does not know before a row is read.

        Raises:
            SpecError: One is missing or unknown.
        """
        needs_target = self._is_chat or self._kind in _T5 | _MULTILINGUAL
        needs_source = self._kind in _T5 | _MULTILINGUAL
        wanted = {"source_lang": needs_source, "target_lang": needs_target}
        missing = [name for name, needed in wanted.items() if needed and not getattr(self._languages, name)]
        if missing:
            example = (
                "'eng_Latn' or 'en', as the model calls them" if self._kind in _MULTILINGUAL else "'en' or 'German'"
            )
            raise SpecError(
                f"translation by model {self._files.name!r} needs {' and '.join(missing)}, such as {example}"
            )
        if self._kind in _MULTILINGUAL and isinstance(checker := load_codec(self._files), TransformersCodec):
            language_token(checker, self._languages.source_lang, self._files, "source_lang")
        _ = self._ways


def write_request(source: str | None, target: str) -> str:
    """What stands before a text in a chat that asks for its translation."""
    to = name_language(target)
    return _ASKED.format(name_language(source), to) if source else _ASKED_OPEN.format(to)
