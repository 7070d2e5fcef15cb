"""What a model is asked, and which part of it may be cut: a question, of one or several messages."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Question:
    """What a model is asked once.

    Args:
        parts: Role and text of each message; of a bare prompt one part, whose role is empty.
        place: Which part holds the document, and where in it the document begins and ends, in characters.
        forced: Tokens that an encoder-decoder's answer begins with, beyond its start token.
    """

    parts: tuple[tuple[str, str], ...]
    place: tuple[int, int, int]
    forced: tuple[int, ...] = ()

    @property
    def is_chat(self) -> bool:
        return self.parts[0][0] != ""

    @property
    def document(self) -> str:
        part, start, end = self.place
        return self.parts[part][1][start:end]

    def cut(self, characters: int) -> Question:
        """The question with so many characters of its document."""
        return self.about(self.document[:characters])

    def about(self, document: str) -> Question:
        """The same question about another document."""
        part, start, end = self.place
        role, text = self.parts[part]
        parts = [*self.parts]
        parts[part] = (role, text[:start] + document + text[end:])
        return replace(self, parts=tuple(parts), place=(part, start, start + len(document)))


def ask(document: str, *, role: str = "", before: str = "", forced: tuple[int, ...] = ()) -> Question:
    """A question of one part: an instruction, then the document."""
    return Question(((role, before + document),), (0, len(before), len(before) + len(document)), forced)
