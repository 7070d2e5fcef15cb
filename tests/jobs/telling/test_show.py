from __future__ import annotations

import pytest

from jobs.telling.show import _cell


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        (bytearray(b"abc"), "61 62 63 (3 bytes)"),
        (b"abcd", "61 62 63 … (4 bytes)"),
        ([], "[] (0)"),
        (["a", "b", "c"], "[a, b, c] (3)"),
        ([0.5] * 4, "[0.500, 0.500, 0.500, …] (4)"),
    ],
)
def test_a_list_shows_its_first_values_and_whether_there_are_more(values: object, cell: str) -> None:
    assert _cell(values) == cell
