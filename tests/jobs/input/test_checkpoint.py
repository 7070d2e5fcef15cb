from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.folder import Folder
from jobs.input.checkpoint import Checkpoint
from tests.stores import OneLie, driver_on, pretend


def _log(path: Path, *lines: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["v1", *(json.dumps(line) for line in lines)]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Three batches, the second one of two of the source's steps; the first steps are compacted."""
    files = [{"path": f"file:///in/{n}%20.json", "timestamp": 7, "batchId": n} for n in range(4)]
    _log(tmp_path / "cp/sources/0/1.compact", *files[:2])
    for n in range(4):
        _log(tmp_path / f"cp/sources/0/{n}", files[n])
    for batch, offset in enumerate((0, 2, 3)):
        _log(tmp_path / f"cp/offsets/{batch}", {}, {"logOffset": offset})
    return Checkpoint(Folder(str(tmp_path)), "cp")


def test_a_batch_has_the_files_between_its_offset_and_the_one_before(checkpoint: Checkpoint) -> None:
    paths = [[file.path for file in checkpoint.files_of(batch)] for batch in range(3)]
    assert paths == [["/in/0 .json"], ["/in/1 .json", "/in/2 .json"], ["/in/3 .json"]]
    assert [file.offset for file in checkpoint.seen()] == [0, 1, 2, 3]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_batch_whose_files_are_not_told_is_not_guessed(checkpoint: Checkpoint, tmp_path: Path, lost: int) -> None:
    (tmp_path / f"cp/offsets/{lost}").unlink()
    with pytest.raises(FileNotFoundError, match="does not tell which files"):
        checkpoint.files_of(2)


@pytest.mark.parametrize("at", range(1, 9))
def test_one_false_answer_of_a_store_makes_no_batch_smaller(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    pretend(monkeypatch, "hdfs")
    with driver_on(OneLie(at)):
        found = Checkpoint(Folder(str(tmp_path)), "cp")
        assert (found.is_begun(), found.offset_of(1)) == (True, 2)
        try:
            told = [file.path for file in found.files_of(1)]
        except FileNotFoundError:
            return
    assert told == ["/in/1 .json", "/in/2 .json"]


def test_a_batch_of_which_some_files_are_not_told_is_not_guessed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "cp/sources/0/2").unlink()
    with pytest.raises(FileNotFoundError, match="does not tell all files"):
        checkpoint.files_of(1)
