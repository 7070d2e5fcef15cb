"""A text to its summary, asked for as the model's family wants it."""

from __future__ import annotations

from udfs.asking import Question, ask
from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.text_generation import TextGeneration, check_has_chat

_ASKED = "Summarize the following text in a few sentences. Answer with the summary alone.\n\n"
_T5 = {"t5", "longt5"}


class Summarization(TextGeneration):
    """T5 wants a prefix, BART and its kin the text alone, a decoder is asked in a chat."""

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        if not files.config.get("is_encoder_decoder"):
            check_has_chat(files, spec.task)
        super().__init__(spec, files)

    @property
    def _is_chat(self) -> bool:
        return not self.encodes

    def questions(self, text: str) -> list[Question]:
        if not self.encodes:
            return [ask(text, role="user", before=_ASKED)]
        return [ask(text, before="summarize: " if self._files.config.get("model_type") in _T5 else "")]
