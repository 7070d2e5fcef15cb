"""However a path is spelt, it is one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.paths import canonical, fixed_part, lies_in


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in/night/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spelt", ["in", "in/", "./in", "in/../in", "{0}/in", "file:{0}/in/", "file://{0}/in", "link", "{0}//in"]
)
def test_all_spellings_are_one(here: Path, spelt: str) -> None:
    assert canonical(spelt.format(here)) == str(here.resolve() / "in")


@pytest.mark.parametrize(
    ("spelt", "told"),
    [
        ("s3a://bucket/in/", "s3://bucket/in"),
        ("s3://bucket//in/./x", "s3://bucket/in/x"),
        ("hdfs://node:8020/in", "hdfs://node:8020/in"),
        ("C", "{0}/C"),
    ],
)
def test_other_places_keep_their_scheme(here: Path, spelt: str, told: str) -> None:
    assert canonical(spelt) == told.format(here.resolve())


@pytest.mark.parametrize(
    ("path", "fixed"), [("/a/b*/c", "/a"), ("b*", "."), ("/*", "/"), ("/a/b", "/a/b"), ("a/{b,c}", "a")]
)
def test_the_part_before_a_wildcard(path: str, fixed: str) -> None:
    assert fixed_part(path) == fixed


@pytest.mark.parametrize(
    ("output", "source", "recursive", "lies"),
    [
        ("{0}/in/out", "in", False, True),
        ("file://{0}/in/out", "{0}/in", False, True),
        ("in/out", "file:///{0}/in/", False, True),
        ("link/out", "in", False, True),
        ("in", "in/", False, True),
        ("in/night/out", "in/*", False, True),
        ("in/out", "in/*.json", False, False),
        ("in/out", "in/*.json", True, True),
        ("in/night/deep/out", "in/*/*.json", False, False),
        ("input/out", "in", False, False),
        ("out", "in", False, False),
        ("s3a://b/in/out", "s3://b/in", False, True),
        ("s3a://b/out", "s3://b/in", False, False),
    ],
)
def test_an_output_that_would_be_read_is_found(
    here: Path, output: str, source: str, recursive: bool, lies: bool
) -> None:
    assert lies_in(output.format(here), source.format(here), recursive=recursive) == lies
