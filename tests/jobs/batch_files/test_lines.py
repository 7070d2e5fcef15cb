"""Lines as they come: each that is not blank is laid out once, whole, in its place."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.batch_files.command import make_settings
from jobs.batch_files.lines import find_dialect, lay_out, read_laid_out, read_lines, work_of
from jobs.errors import InputError, OutputError, SettingsError
from jobs.folder import Folder
from tests.conftest import MINILM
from tests.stores import OneLie, driver_on, pretend


class _Trickle(io.RawIOBase):
    """A stream that gives less than it is asked for."""

    def __init__(self, content: bytes, piece: int) -> None:
        self._rest, self._piece = content, piece

    def read(self, size: int = -1) -> bytes:
        taken, self._rest = self._rest[: self._piece], self._rest[self._piece :]
        return taken


def _read(content: bytes) -> list[tuple[int, str, str]]:
    found = [
        (line.number, line.text, (line.problem or "").partition(":")[0]) for line in read_lines(io.BytesIO(content))
    ]
    trickled = list(read_lines(_Trickle(content, max(len(content) // 7, 5))))  # type: ignore[arg-type]
    assert [(line.number, line.text) for line in trickled] == [(number, text) for number, text, _ in found]
    return found


A, B = '{"custom_id": "a"}', '{"custom_id": "b"}'


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"{A}\n{B}\n".encode(), [(1, A), (2, B)]),
        (f"{A}\n{B}".encode(), [(1, A), (2, B)]),  # no line feed at the end
        (f"\ufeff{A}\r\n{B}\r\n".encode(), [(1, A), (2, B)]),  # a byte order mark, line ends of Windows
        (f"\n\n{A}\n \t\n{B}\n\n".encode(), [(3, A), (5, B)]),  # blank lines
        (f"{A}\n{{broken\n{B}".encode(), [(1, A), (2, "{broken"), (3, B)]),
        (f"{A}\u2028\u2029\x85\x0b{B}\n".encode(), [(1, f"{A}\u2028\u2029\x85\x0b{B}")]),  # none of these ends a line
        (f"{A}\x00\n".encode(), [(1, f"{A}\x00")]),
        (b"", []),
        (b"\n\n", []),
        ("\ufeff".encode(), []),
    ],
)
def test_a_line_feed_ends_a_line_and_nothing_else_does(content: bytes, lines: list[tuple[int, str]]) -> None:
    assert [(number, text) for number, text, _ in _read(content)] == lines


def test_an_id_that_is_there_twice_is_wrong_from_the_second_line_on() -> None:
    told = _read(f"{A}\n{B}\n{A}\n{{\n{{\n{A}".encode())
    assert [problem for _, _, problem in told] == ["", "", "duplicate_custom_id", "", "", "duplicate_custom_id"]


def test_a_byte_order_mark_amid_a_file_hides_no_id() -> None:
    told = _read(f"{A}\n\ufeff{A}\n\ufeff{B}".encode())
    assert told == [(1, A, ""), (2, A, "duplicate_custom_id"), (3, B, "")]


def test_a_line_that_is_no_utf_8_is_wrong_and_the_others_are_not() -> None:
    told = _read(A.encode() + b"\n\xff\xfe{}\n" + B.encode())
    assert [problem for _, _, problem in told] == ["", "invalid_json_line", ""]


def test_a_line_of_megabytes_is_one_line() -> None:
    long = json.dumps({"custom_id": "x", "body": "y" * (5 << 20)})
    assert [text for _, text, _ in _read(f"{A}\n{long}\n{B}".encode())] == [A, long, B]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_requests_of_a_body_are_lines(indent: int | None, mark: str) -> None:
    requests = [{"custom_id": str(number), "params": {"x": "é]},{" * number}} for number in range(20)]
    told = _read((mark + json.dumps({"requests": requests}, indent=indent)).encode())
    assert [json.loads(text) for _, text, _ in told] == requests
    assert [number for number, _, _ in told] == list(range(1, 21))


def test_a_body_that_is_cut_short_has_its_rest_as_a_line() -> None:
    told = _read(b'{"requests": [{"custom_id": "a"}, {"custom_id": "b", "par')
    assert [text for _, text, _ in told] == [A, '{"custom_id": "b", "par']


@pytest.mark.parametrize(
    ("middle", "found"),
    [
        ('{"custom_id": "x" "params"}', 1),  # a comma is missing
        ('{"custom_id": "x", "params": ' + "1" * 5000 + "}", 1),
        ('{"custom_id": "x", "params": ' + "[" * 5000 + "]" * 5000 + "}", 1),
        ('7, "a]}", null', 3),
        ("{}}", 2),
    ],
)
def test_a_broken_request_of_a_body_hides_no_other(middle: str, found: int) -> None:
    told = _read(f'{{"requests": [{A}, {middle}, {B}]}}'.encode())
    assert [text for _, text, _ in (told[0], told[-1])] == [A, B]
    assert len(told) == 2 + found


@pytest.mark.parametrize("rest", [', "more": 1}', '}\n{"requests": [{"custom_id": "b"}]}', "} x"])
def test_what_stands_after_the_requests_of_a_body_is_a_line_of_its_own(rest: str) -> None:
    told = _read(f'{{"requests": [{A}]{rest}'.encode())
    assert [text for _, text, _ in told] == [A, rest.removeprefix("}").strip()]


@pytest.mark.parametrize(
    ("results", "errors", "told"),
    [
        ("in/a.jsonl", None, "is input.path, which it would overwrite"),
        ("./in/../in/a.jsonl", None, "is input.path, which it would overwrite"),
        ("out.jsonl", "in/a.jsonl", "output.errors .* is input.path"),
        ("out.jsonl", "out.jsonl", "name two files"),
        ("out/", None, "is a directory; name a file"),
    ],
)
def test_results_take_no_place_of_another_file(
    results: str, errors: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=told):
        make_settings("in/a.jsonl", results, models=["m=x"], errors=errors, dialect="openai")
    with pytest.raises(SettingsError, match=r"lies in input\.path"):
        make_settings("in", "in/b.jsonl", models=["m=x"], dialect="openai")


def test_a_file_that_is_no_result_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(A)
    asked = _settings(tmp_path, tmp_path / "in.jsonl", dialect="openai")
    (tmp_path / "results.jsonl").write_text("another day's requests")
    with pytest.raises(OutputError, match="no result of this job"):
        lay_out(asked)
    lay_out(asked, overwrite=True)
    lay_out(asked)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        lay_out(make_settings(str(tmp_path / "in.jsonl"), str(tmp_path / "folder"), models=["m=x"], dialect="openai"))


def _settings(tmp_path: Path, requests: Path, **more: Any) -> Any:
    return make_settings(str(requests), str(tmp_path / "results.jsonl"), models=[f"m={MINILM}"], **more)


def test_files_are_laid_out_once_and_new_ones_added(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.jsonl").write_text(f"{A}\n" * 1001)
    asked = _settings(tmp_path, folder, dialect="openai")
    run = lay_out(asked)
    assert run.input.path == f"{work_of(asked)}/requests"
    before = sorted((Path(work_of(asked)) / "requests").iterdir())
    assert len(before) == 5
    (folder / "a.jsonl").write_text(B)
    lay_out(asked)
    laid = list(read_laid_out(Folder(work_of(asked))))
    assert [line["line"] for line in laid] == [1, *range(1, 1002)]
    assert laid[0]["request"] == B
    (folder / "b.jsonl").write_text(A)
    with pytest.raises(OutputError, match="has changed since"):
        lay_out(asked)
    lay_out(asked, overwrite=True)
    assert len(list(read_laid_out(Folder(work_of(asked))))) == 2


def test_a_file_that_was_laid_out_in_part_is_laid_out_anew(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(f"{A}\n{B}")
    asked = _settings(tmp_path, tmp_path / "in.jsonl", dialect="openai")
    parts = Path(work_of(asked)) / "requests"
    parts.mkdir(parents=True)
    for part in range(2):  # the file was longer then
        (parts / f"00000-00000{part}.parquet").write_bytes(b"half")
    lay_out(asked)
    assert [line["request"] for line in read_laid_out(Folder(work_of(asked)))] == [A, B]
    assert [path.name for path in parts.iterdir()] == ["00000-000000.parquet"]


def test_parts_that_a_store_once_does_not_find_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text(f"{A}\n{B}")
    asked = _settings(tmp_path, tmp_path / "in.jsonl", dialect="openai")
    lay_out(asked)
    pretend(monkeypatch, "hdfs")
    for at in (1, 2, 3):
        with driver_on(OneLie(at)), contextlib.suppress(FileNotFoundError):
            assert len(list(read_laid_out(Folder(work_of(asked))))) == 2


@pytest.mark.parametrize(
    ("content", "dialect"),
    [
        ('{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}', "openai-batch"),
        ('\ufeff{"custom_id": "a", "params": {}}', "anthropic-batch"),
        ('{\n  "requests": [', "anthropic-batch"),
        ('{broken\n\n{"custom_id": "a", "body": {}}', "openai-batch"),
        pytest.param(json.dumps({"custom_id": "a", "params": "x" * (3 << 20)}), "anthropic-batch", id="long"),
    ],
)
def test_a_file_tells_whose_requests_it_holds(content: str, dialect: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    assert find_dialect(str(tmp_path / "in.jsonl")) == dialect
    assert _settings(tmp_path, tmp_path / "in.jsonl").input.format == dialect


def test_what_does_not_tell_and_what_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n[]")
    with pytest.raises(InputError, match="say it by --dialect"):
        find_dialect(str(tmp_path / "in.jsonl"))
    with pytest.raises(InputError, match="there is no file"):
        find_dialect(str(tmp_path / "none.jsonl"))
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="holds no request"):
        lay_out(_settings(tmp_path, tmp_path / "blank.jsonl", dialect="openai"))


def test_one_name_for_two_models_is_told() -> None:
    with pytest.raises(SettingsError, match="one name"):
        make_settings("in", "out", models=["m=x", "m=y"], dialect="openai")


@pytest.mark.parametrize("model", ["m", "=x", "m="])
def test_a_model_without_a_name_is_told(model: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="write it as NAME=MODEL"):
        make_settings("in", "out", models=[model], dialect="openai")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("score.task=summarization", "score.task is for jobs without models"),
        ("score.overflow=chunk", "not read in chunks"),
        ("output.format=anthropic-batch", "are of two services"),
        ("score.typo=1", "there is no such key"),
    ],
)
def test_settings_that_do_not_fit_requests_are_told(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=told):
        make_settings("in", str(tmp_path / "out"), models=["m=x"], dialect="openai", overrides=[override])
