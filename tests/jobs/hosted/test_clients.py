"""What the providers' clients have in common, without a provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.hosted.clients import save_stream
from jobs.hosted.provider import LostReplyError

KEY = "sk-aab-0123456789"


class _Response:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def iter_bytes(self, _: int) -> Any:
        return iter(self._pieces)


@given(st.lists(st.sampled_from([KEY, "sk-", "a", "b", "s", '"id"\n', "sk-aab-01234", "é"]), max_size=12), st.data())
def test_a_key_is_in_no_file_wherever_the_stream_is_parted(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], data: st.DataObject
) -> None:
    told = ("".join(words) + "\n").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(told)), max_size=6)))
    pieces = [told[a:b] for a, b in zip([0, *cuts], [*cuts, len(told)], strict=True)]
    file = tmp_path_factory.getbasetemp() / "results.jsonl"
    save_stream(_Response(pieces), file, key=KEY, size=len(told))
    assert file.read_bytes() == told.replace(KEY.encode(), b"***")


def test_a_download_that_is_short_is_told_however_much_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(LostReplyError, match="after 18 of 19"):
        save_stream(_Response([b"sk-", b"aab-0123456789\n"]), tmp_path / "a", key=KEY, size=19)
    with pytest.raises(LostReplyError, match="within a line"):
        save_stream(
            _Response(
                [b'{"a": 1}\n{"b'],
            ),
            tmp_path / "b",
            key=None,
        )
    assert save_stream(_Response([]), tmp_path / "c", key=KEY).read_bytes() == b""


def test_a_placeholder_is_a_word_that_an_answer_may_have(tmp_path: Path) -> None:
    told = b'{"text": "none the less", "custom_id": "gm-1"}\n'
    for key in ("none", "1", "custom_id", ""):
        assert save_stream(_Response([told]), tmp_path / "a", key=key).read_bytes() == told
