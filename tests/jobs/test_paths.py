"""However a path is spelt, it is one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.paths import as_uri_has_it, canonical, fixed_part, lies_in


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
        ("s3a://bucket/in/", "s3a://bucket/in"),
        ("s3://bucket//in/./x", "s3://bucket/in/x"),
        ("hdfs://node:8020/in", "hdfs://node:8020/in"),
        ("hdfs:///data", "hdfs:///data"),
        ("C", "{0}/C"),
        ("*.jsonl", "{0}/*.jsonl"),
        ("./?.jsonl", "{0}/?.jsonl"),
        ("link/x", "{0}/link/x"),
    ],
)
def test_what_is_another_uri_to_spark_is_another_path(here: Path, spelt: str, told: str) -> None:
    assert as_uri_has_it(spelt) == told.format(here.resolve())


@pytest.mark.parametrize(
    ("path", "fixed"), [("/a/b*/c", "/a"), ("b*", "."), ("/*", "/"), ("/a/b", "/a/b"), ("a/{b,c}", "a")]
)
def test_the_part_before_a_wildcard(path: str, fixed: str) -> None:
    assert fixed_part(path) == fixed


@pytest.mark.parametrize(
    ("output", "source", "lies"),
    [
        ("{0}/in/out", "in", True),
        ("file://{0}/in/out", "{0}/in", True),
        ("in/out", "file:///{0}/in/", True),
        ("link/out", "in", True),
        ("in", "in/", False),
        ("in/night/out", "in/*", True),
        ("in/out", "in/*.json", False),
        ("in/2024-1/out", "in/2024-*", True),
        ("in/out", "in/2024-*", False),
        ("in/night/deep/out", "in/*/*.json", False),
        ("input/out", "in", False),
        ("out", "in", False),
        ("in/night/out", "in/{{day,night}}", True),
        ("in/night/out", "{0}/{{x,in/{{day,ni*}}}}", True),
        ("in/out", "in/{{day,night}}", False),
        ("s3a://b/in/out", "s3://b/in", True),
        ("s3a://b/out", "s3://b/in", False),
    ],
)
def test_an_output_that_would_be_read_is_found(here: Path, output: str, source: str, lies: bool) -> None:
    assert lies_in(output.format(here), source.format(here)) == lies
