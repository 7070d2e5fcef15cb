from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.input.checkpoint import SeenFile
from jobs.input.files import ReadFile, find_gone, find_repeated, list_input, tell_back, tell_replaced, tell_unread


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory below one that is hidden, with two files in it."""
    path = tmp_path / ".home/in"
    path.mkdir(parents=True)
    for name in ("a b.json", "c.json"):
        (path / name).write_text("{}")
    monkeypatch.chdir(tmp_path / ".home")
    return path


def _seen(path: Path) -> SeenFile:
    return SeenFile(path.as_uri(), 0, 0)


@pytest.mark.parametrize(
    "spelling",
    ["in", "./in/", "../.home/in", "{0}", "{0}//", "{0}/../in", "file:{0}", "file://{0}/../in/", "in/*.json"],
)
def test_however_a_path_is_spelt_its_files_are_those_that_spark_names(folder: Path, spelling: str) -> None:
    path = spelling.format(folder)
    files = list_input(path, [file.as_uri() for file in folder.iterdir()])
    assert files.taken == set(files.found)
    assert files.left([]) == {str(folder / name): 2 for name in ("a b.json", "c.json")}
    assert tell_unread(files, path=path, filtered=False) == []
    assert find_gone(path, map(_seen, folder.iterdir())) == []


def test_a_name_with_a_percent_sign_is_no_code(folder: Path) -> None:
    folder.rename(folder.with_name("100%20"))
    files = list_input(f"file://{folder.with_name('100%20')}", [(folder.with_name("100%20") / "c.json").as_uri()])
    assert files.taken < set(files.found)


def test_a_hidden_directory_is_one_below_the_input(folder: Path) -> None:
    for name in ("_old", "deep"):
        (folder / name).mkdir()
        (folder / name / "x.json").write_text("{}")
    files = list_input("in", [(folder / name).as_uri() for name in ("a b.json", "c.json")])
    hidden, nested = tell_unread(files, path="in", filtered=False)
    assert hidden.endswith("/_old/x.json")
    assert "/deep/x.json; set" in nested


def test_files_that_are_gone_are_found_and_told_if_they_come_back(folder: Path) -> None:
    planned = [_seen(file) for file in folder.iterdir()]
    (folder / "a b.json").rename(folder.parent / "aside")
    (gone,) = find_gone(str(folder), planned)
    assert gone.path == str(folder / "a b.json")
    assert tell_back(list_input("in", ()), [gone.uri]) == []
    (folder.parent / "aside").rename(folder / "a b.json")
    (told,) = tell_back(list_input("in", ()), [gone.uri])
    assert f"back now, and not scored: {gone.path};" in told


def test_an_input_without_any_file_is_not_taken_for_one_whose_files_are_gone(folder: Path) -> None:
    planned = [_seen(file) for file in folder.iterdir()]
    for file in folder.iterdir():
        os.remove(file)
    with pytest.raises(InputError, match="holds no file any more"):
        find_gone(str(folder), planned)


def test_a_file_is_replaced_only_if_it_was_written_anew_after_it_had_been_read(folder: Path) -> None:
    (folder / "a b.json").unlink()
    files, uri = list_input("in", ()), (folder / "c.json").as_uri()
    written_ms = files.found[str(folder / "c.json")].changed_ns // 1_000_000
    planned_before, planned_so = SeenFile(uri, written_ms - 9000, 3), SeenFile(uri, written_ms, 3)
    assert tell_replaced(files, [planned_before], [], [(2, 0.0)]) == []  # it is planned, and not read yet
    assert tell_replaced(files, [planned_before], [], [(2, 0.0), (4, written_ms + 5000)]) == []  # mended, then read
    assert tell_replaced(files, [planned_so], [], [(4, written_ms - 5000)]) == []
    (told,) = tell_replaced(files, [planned_before], [], [(2, 0.0), (4, written_ms - 5000), (5, written_ms + 5000)])
    assert f"not scored again: {folder / 'c.json'};" in told


def test_a_file_is_replaced_by_an_older_one_or_one_of_the_same_time_as_well(folder: Path) -> None:
    files, path = list_input("in", ()), folder / "c.json"
    found = files.found[str(path)]
    seen, looked = SeenFile(path.as_uri(), found.changed_ns // 1_000_000, 3), [(4, 0.0)]
    as_it_is = ReadFile(path.as_uri(), found.size, seen.changed_ms, 1, "")
    assert tell_replaced(files, [seen], [as_it_is], looked) == []
    for change in ({"changed_ms": seen.changed_ms + 3_600_000}, {"size": found.size + 1}):
        (told,) = tell_replaced(files, [seen], [replace(as_it_is, **change)], looked)
        assert "not scored again" in told


def test_files_with_the_rows_of_another_are_found_whatever_their_names() -> None:
    a, b, c, d = (ReadFile(f"file:///in/{name}", 9, 0, 2, name[0]) for name in ("a1", "a2", "a3", "d"))
    assert find_repeated([c, b, d], [a]) == {b.uri: a.uri, c.uri: a.uri}
    assert find_repeated([b, a], []) == {b.uri: a.uri}
    assert find_repeated([a], [a]) == {}  # read again after a kill
    assert find_repeated([replace(b, size=8), replace(c, rows=3)], [a]) == {}
