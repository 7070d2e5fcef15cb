"""Long texts cut into chunks that end where paragraphs, sentences or words do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from udfs.errors import SpecError

# The library's time grows with the square of a text that has no borders, so that very long ones are cut before.
_BLOCK = 50_000
_BORDERS = ("\n\n", "\n", " ")


@dataclass(frozen=True)
class Chunk:
    """A part of a text, without the space around it.

    Args:
        start: Where it begins, in characters.
        text: What it says.
    """

    start: int
    text: str


class Splitter:
    """Cuts texts at the widest borders that make chunks of so many tokens, or fewer.

    Args:
        tokens: A `tokenizers.Tokenizer` that cuts nothing off itself, or what counts the tokens of a text.
        room: Longest chunk in tokens, without special ones; only a single character may be longer.
        overlap: So many tokens of a chunk, or fewer, may be repeated by the next one.

    Raises:
        SpecError: There is no room, or chunks would overlap by more than a half.
    """

    def __init__(self, tokens: Any, *, room: int, overlap: int = 0) -> None:
        from semantic_text_splitter import TextSplitter

        if room < 1:
            raise SpecError("max_tokens leaves no room for a chunk of a text; raise it")
        if overlap > room // 2:
            raise SpecError(f"chunk_overlap is {overlap}, more than half of a chunk, which has room for {room} tokens")
        make = TextSplitter.from_callback if callable(tokens) else TextSplitter.from_huggingface_tokenizer
        self._splitter, self._room, self._overlap = make(tokens, room, overlap), room, overlap

    def counting_by(self, count: Callable[[str], int]) -> Splitter:
        """The same, by another way to count tokens."""
        return Splitter(count, room=self._room, overlap=self._overlap)

    def __call__(self, texts: Sequence[str]) -> list[list[Chunk]]:
        """The chunks of each text, in order; none of a text that is blank."""
        blocks = [(number, *block) for number, text in enumerate(texts) for block in _cut_blocks(text)]
        chunks: list[list[Chunk]] = [[] for _ in texts]
        found = self._splitter.chunk_all_indices([text for *_, text in blocks])
        for (number, start, _), parts in zip(blocks, found, strict=True):
            chunks[number] += [Chunk(start + place, text) for place, text in parts]
        return chunks


def find_gaps(text: str, chunks: Sequence[Chunk]) -> list[str]:
    """The space that stands in a text before each of its chunks."""
    ends = [0, *(chunk.start + len(chunk.text) for chunk in chunks)]
    return [text[end : chunk.start] for end, chunk in zip(ends, chunks, strict=False)]


def _cut_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Parts of a text with their beginnings, each cut at the widest border in its second half, if there is one."""
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text):
            found = (text.rfind(border, start + _BLOCK // 2, end) for border in _BORDERS)
            end = next((place for place in found if place >= 0), end)
        yield start, text[start:end]
        start = end
