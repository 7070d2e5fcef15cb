"""A text to the same in another language, asked for as the model's family wants it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from udfs.asking import Question, ask
from udfs.codec import Codec, TransformersCodec, load_codec
from udfs.errors import SpecError
from udfs.languages import language_token, marian_prefix, name_language
from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.text_generation import TextGeneration, check_has_chat

_ASKED = "Translate the following text from {} to {}. Answer with the translation alone.\n\n"
_ASKED_OPEN = "Translate the following text to {}. Answer with the translation alone.\n\n"
_MULTILINGUAL = {"m2m_100", "mbart"}
_T5 = {"t5", "longt5"}


class Translation(TextGeneration):
    """Marian wants the target before the text, M2M, NLLB and mBART a source and a forced token, T5 a sentence.

    Other encoder-decoders get the text alone; a decoder is asked in a chat. A text is asked for once in each target.
    """

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        self._kind = files.config.get("model_type")
        self._decodes_only = not files.config.get("is_encoder_decoder")
        if self._decodes_only:
            check_has_chat(files, spec.task)
        super().__init__(spec, files)
        self._check_languages()

    @property
    def _is_chat(self) -> bool:
        return self._decodes_only

    @cached_property
    def codec(self) -> Codec:
        return load_codec(self._files, self._spec.source_lang if self._kind in _MULTILINGUAL else None)

    def questions(self, text: str) -> list[Question]:
        role = "user" if self._decodes_only else ""
        return [ask(text, role=role, before=before, forced=forced) for before, forced in self._ways]

    @cached_property
    def _ways(self) -> list[tuple[str, tuple[int, ...]]]:
        """Of each target, what stands before a text, and what its translation begins with."""
        return [(self._before(target), self._forced(target)) for target in self._targets]

    @property
    def _targets(self) -> Sequence[str | None]:
        target = self._spec.target_lang
        return target if isinstance(target, tuple) else (target,)

    def _forced(self, target: str | None) -> tuple[int, ...]:
        if self._kind not in _MULTILINGUAL or not isinstance(self.codec, TransformersCodec):
            return ()
        token = language_token(self.codec, target, self._files, "target_lang")
        # an mBART for one pair starts with its language anyway
        return () if token == self._files.config.get("decoder_start_token_id") else (token,)

    def _before(self, target: str | None) -> str:
        source = self._spec.source_lang
        if self._kind == "marian" and isinstance(self.codec, TransformersCodec):
            return marian_prefix(self.codec, target, self._files)
        if self._kind in _T5:
            return f"translate {name_language(source or '')} to {name_language(target or '')}: "
        if self._decodes_only:
            to = name_language(target or "")
            return _ASKED.format(name_language(source), to) if source else _ASKED_OPEN.format(to)
        return ""

    def _check_languages(self) -> None:
        """Refuse languages that the model does not know before a row is read.

        Raises:
            SpecError: One is missing or unknown.
        """
        needs_target = self._decodes_only or self._kind in _T5 | _MULTILINGUAL
        needs_source = self._kind in _T5 | _MULTILINGUAL
        wanted = {"source_lang": needs_source, "target_lang": needs_target}
        missing = [name for name, needed in wanted.items() if needed and not getattr(self._spec, name)]
        if missing:
            example = (
                "'eng_Latn' or 'en', as the model calls them" if self._kind in _MULTILINGUAL else "'en' or 'German'"
            )
            raise SpecError(
                f"translation by model {self._files.name!r} needs {' and '.join(missing)}, such as {example}"
            )
        if self._kind in _MULTILINGUAL and isinstance(checker := load_codec(self._files), TransformersCodec):
            language_token(checker, self._spec.source_lang, self._files, "source_lang")
        _ = self._ways
