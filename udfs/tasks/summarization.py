"""A text to its summary, asked for as the model's family wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from udfs.asking import Question, ask
from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.splitting import Chunk
from udfs.tasks.text_generation import More, TextGeneration, check_has_chat
from udfs.tokenizing import Tokenized

if TYPE_CHECKING:
    from udfs.answering import Answered

_ASKED = "Summarize the following text in a few sentences. Answer with the summary alone.\n\n"
_T5 = {"t5", "longt5"}


class Summarization(TextGeneration):
    """T5 wants a prefix, BART and its kin the text alone, a decoder is asked in a chat.

    A text that is read in chunks has the summary of its chunks' summaries; where these do not become fewer, it is of
    those that fit into one prompt.
    """

    def __init__(self, spec: ScoreSpec, files: ModelFiles) -> None:
        if not files.config.get("is_encoder_decoder"):
            check_has_chat(files, spec.task)
        super().__init__(spec, files)

    @property
    def _is_chat(self) -> bool:
        return not self.encodes

    def ask_on(self, answered: Answered, tokenized: Tokenized) -> More | None:
        """Summarize the joined summaries of a long text's chunks, as long as they become fewer."""
        chunks = np.diff(tokenized.units)
        summaries = answered.columns[0].to_pylist()
        texts = [int(text) for text in np.flatnonzero(chunks > 1) if text not in answered.errors and summaries[text]]
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
            return [ask(text, role="user", before=_ASKED)]
        return [ask(text, before="summarize: " if self._files.config.get("model_type") in _T5 else "")]
