"""A text to its summary, asked for as the model's family wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.writing import Answers, More, Writing
from udfs.tasks.writing_options import WritingOptions, check_has_chat
from udfs.text.questions import Question, ask
from udfs.text.splitting import Chunk
from udfs.text.tokenizing import Tokenized

_ASKED = "Summarize the following text in a few sentences. Answer with the summary alone.\n\n"
_T5 = {"t5", "longt5"}


@dataclass(frozen=True, kw_only=True)
class SummarizationOptions(WritingOptions):
    """What summarization takes: what each task does whose model writes."""

    task: ClassVar[str] = "summarization"
    chunks: ClassVar[Literal["summarized"]] = "summarized"


class Summarization(Writing):
    """T5 wants a prefix, BART and its kin the text alone, a decoder is asked in a chat.

    A text that is read in chunks has the summary of its chunks' summaries; where these do not become fewer, it is of
    those that fit into one prompt.
    """

    def __init__(self, spec: ScoreSpec[SummarizationOptions], files: ModelFiles) -> None:
        self._is_chat = not files.config.get("is_encoder_decoder")
        if self._is_chat:
            check_has_chat(files, spec.task)
        super().__init__(spec, files)

    def ask_on(self, answers: Answers, tokenized: Tokenized) -> More | None:
        """Summarize the joined summaries of a long text's chunks, as long as they become fewer."""
        if self._spec.overflow != "chunk":
            return None
        chunks = np.diff(tokenized.units)
        summaries = answers.columns[0].to_pylist()
        texts = [int(text) for text in np.flatnonzero(chunks > 1) if text not in answers.failures and summaries[text]]
        if not texts:
            return None
        documents = [summaries[text] for text in texts]
        asked = self.tokenize(documents)
        stuck = np.diff(asked.units) >= chunks[texts]
        if stuck.any():
            asked = self._tokenize(documents, ["truncate" if is_stuck else "chunk" for is_stuck in stuck.tolist()])
        return More(np.array(texts), asked)

    def _gaps(self, document: str, chunks: Sequence[Chunk]) -> list[str]:
        return ["\n\n"] * len(chunks)  # between summaries, wherever the chunks were cut

    def questions(self, text: str) -> list[Question]:
        if not self.encodes:
            return [ask_in_chat(text)]
        return [ask(text, before="summarize: " if self._files.config.get("model_type") in _T5 else "")]


def ask_in_chat(text: str) -> Question:
    """What a model that is told in a chat what to do is asked."""
    return ask(text, role="user", before=_ASKED)
