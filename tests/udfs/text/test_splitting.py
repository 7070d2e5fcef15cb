from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.errors import SpecError
from udfs.text.splitting import Splitter, find_gaps


def _count(text: str) -> int:
    """Words and signs are tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _split(text: str, room: int, overlap: int = 0) -> list[str]:
    return [chunk.text for chunk in Splitter(_count, room=room, overlap=overlap)([text])[0]]


def test_chunks_end_where_paragraphs_or_sentences_do() -> None:
    assert _split("One two. Three four five.\n\nSix seven.", 8) == ["One two. Three four five.", "Six seven."]
    assert _split("One two. Three four. Five six.", 7) == ["One two. Three four.", "Five six."]
    assert _split("one two three four five", 2) == ["one two", "three four", "five"]
    assert _split("雨が降る。風が吹く。", 3) == ["雨が降る。", "風が吹く。"]


def test_chunks_may_repeat_the_end_of_the_one_before() -> None:
    assert _split("A b. C d. E f. G h.", 6, overlap=3) == ["A b. C d.", "C d. E f.", "E f. G h."]


FAMILY = "👩‍👩‍👧"
PARTS = ["tea", "é", FAMILY, ".", "\n\n", " ", "\t", "日本", "long" * 9]


@given(st.lists(st.sampled_from(PARTS), max_size=60), st.integers(1, 9))
def test_chunks_and_the_gaps_between_them_are_the_text(parts: list[str], room: int) -> None:
    text = "".join(parts)
    (chunks,) = Splitter(_count, room=room)([text])
    joined = "".join(gap + chunk.text for gap, chunk in zip(find_gaps(text, chunks), chunks, strict=True))
    assert joined == text[: len(joined)]
    assert not text[len(joined) :].strip()
    assert all(text[c.start : c.start + len(c.text)] == c.text for c in chunks)
    assert all(_count(c.text) <= room for c in chunks if c.text != FAMILY)  # one sign of several tokens


def test_texts_of_a_million_characters_are_cut_whatever_they_hold() -> None:
    for text in ("word " * 200_000, "x" * 1_000_000, "日本語" * 300_000):
        (chunks,) = Splitter(lambda text: 1 + len(text) // 4, room=5_000)([text])
        assert sum(len(c.text) for c in chunks) + sum(map(len, find_gaps(text, chunks))) in (len(text), len(text) - 1)
        assert max(len(c.text) for c in chunks) <= 20_000


def test_blank_texts_have_no_chunks_and_each_text_its_own() -> None:
    found = Splitter(_count, room=2)(["a b c", " \n", "", "d"])
    assert [[c.text for c in chunks] for chunks in found] == [["a b", "c"], [], [], ["d"]]


def test_chunks_without_room_or_with_more_overlap_than_text_are_refused() -> None:
    with pytest.raises(SpecError, match="no room for a chunk"):
        Splitter(_count, room=0)
    with pytest.raises(SpecError, match="chunk_overlap is 5, more than half"):
        Splitter(_count, room=8, overlap=5)
