from __future__ import annotations

import pytest

from jobs.bench import corpus
from jobs.bench.corpus import docstrings
from jobs.errors import InputError


def test_docstrings_are_distinct_and_the_same_each_time() -> None:
    texts = docstrings(300)
    assert len(set(texts)) == 300
    assert texts == docstrings(300)
    assert all("\n" not in text for text in docstrings(50, first_line=True))


def test_more_rows_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_read_docstrings", lambda seed: iter(["One.", "", "Two.", "One."]))
    assert sorted(docstrings(2)) == ["One.", "Two."]
    with pytest.raises(InputError, match="--rows"):
        docstrings(3)
