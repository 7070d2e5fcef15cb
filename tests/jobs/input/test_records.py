"""Records as people write them: CSV by its headers, quotes and lines within values, records that do not fit."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.input.reading import Readable, read_whole
from jobs.input.sources import read_input
from jobs.job_file import load_settings
from jobs.run import retry, score
from jobs.settings import Settings

WriteJob = Callable[..., Path]
Read = Callable[..., Readable]


@pytest.fixture
def job(write_job: WriteJob, tmp_path: Path) -> Callable[..., Settings]:
    """A job on a directory of CSV files with headers."""

    def make(form: str = "csv", **sections: dict[str, Any]) -> Settings:
        options = {"header": True} if form == "csv" else {}
        options |= sections.pop("options", {})
        source = {"path": str(tmp_path / "in"), "format": form, "options": options, **sections.pop("input", {})}
        return load_settings(write_job(input=source, **sections))

    (tmp_path / "in").mkdir()
    return make


def _read(spark: Any, settings: Settings, *, hold: bool = False) -> Readable:
    frame = read_input(spark, settings)
    return read_whole(spark, settings, frame.schema, sorted(frame.inputFiles()), hold=hold)


def _pairs(read: Readable) -> set[tuple[Any, Any]]:
    return {(row["id"], row["text"]) for row in read.frame.collect()}


def test_csv_files_are_read_by_their_own_headers(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "in/a.csv").write_text("id,text,price\n1,a,1\n")
    (tmp_path / "in/b.csv").write_text("Text,price,ID\nb,2,2\n")
    (tmp_path / "in/c.csv").write_text("text,id,brand,price\nc,3,acme,3\n")
    (tmp_path / "in/d.csv").write_text("text,id\nd,4\n")
    (tmp_path / "in/e.csv").write_text("")
    schema = read_input(spark, job()).schema
    assert schema.names == ["id", "text", "price", "brand", "_corrupt_record"]
    (tmp_path / "in/f.csv").write_text("new,brand,price,text,id\nn,acme,5,f,5\n")  # on a later night
    read = read_whole(spark, job(), schema, sorted(file.as_uri() for file in (tmp_path / "in").iterdir()))
    assert _pairs(read) == {("1", "a"), ("2", "b"), ("3", "c"), ("4", "d"), ("5", "f")}
    assert {row["price"] for row in read.frame.collect()} == {"1", "2", "3", "5", None}
    assert read.counts.malformed == {}
    (new,) = (line for line in read.told if "new columns" in line)
    assert "without them: new of" in new
    assert new.endswith("f.csv")
    (absent,) = (line for line in read.told if line.startswith("columns that are not there are null: price, brand"))
    assert absent.endswith("d.csv")


@pytest.mark.long
def test_a_csv_file_without_the_text_column_is_named(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "in/a.csv").write_text("id,text\n1,a\n")
    (tmp_path / "in/b.csv").write_text("id,titel\n1,a\n")
    with pytest.raises(InputError, match=r"lacks text, which the job needs: .*b\.csv"):
        _read(spark, job())


@pytest.mark.long
@pytest.mark.parametrize("header", ["id,text,text", ",id,text", "text,,id"])
def test_headers_with_empty_or_repeated_names_are_read_alike(
    spark: Any, job: Callable[..., Settings], tmp_path: Path, header: str
) -> None:
    names = header.split(",")
    for file in ("a.csv", "b.csv"):
        (tmp_path / "in" / file).write_text(f"{header}\n{','.join(f'{file}{i}' for i in range(3))}\n")
    settings = job(score={"text": "{{ text }}" if names.count("text") == 1 else "{{ text1 }}"})
    read = _read(spark, settings)
    assert read.counts.rows == 2
    assert (read.counts.malformed, read.told) == ({}, ())


@pytest.mark.long
def test_partitions_stay_where_csv_files_differ(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    for day, header in ((1, "id,text"), (2, "text,id")):
        (tmp_path / f"in/day={day}").mkdir()
        row = {"id": str(day), "text": "t"}
        line = ",".join(row[name] for name in header.split(","))
        (tmp_path / f"in/day={day}/a.csv").write_text(f"{header}\n{line}\n")
    read = _read(spark, job())
    assert {(str(row["day"]), row["id"], row["text"]) for row in read.frame.collect()} == {
        ("1", "1", "t"),
        ("2", "2", "t"),
    }
    assert read.told == ()


def test_records_that_do_not_fit_are_found_and_kept(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "in/a.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "te\n')
    (tmp_path / "in/b.jsonl").write_text('{"id": 3, "text": "b"}\n')
    settings = job("json", output={"columns": ["id"]})
    schema = read_input(spark, settings).schema
    (tmp_path / "in/b.jsonl").write_text('{"id": "x4", "text": "b"}\n{"id": 5, "text": "c"}\n')  # a later night
    uris = [(tmp_path / f"in/{name}.jsonl").as_uri() for name in "ab"]
    read = read_whole(spark, settings, schema, uris)
    assert {Path(uri).name: rows for uri, rows in read.counts.malformed.items()} == {"a.jsonl": 1, "b.jsonl": 1}
    raw = {row["_corrupt_record"] for row in read.frame.collect()}
    assert raw == {None, '{"id": 2, "te', '{"id": "x4", "text": "b"}'}


@pytest.mark.long
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.text("ab ,;\"'\\\n\t{é", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=30),
    first=st.sampled_from(["id", "text"]),
)
def test_csv_as_pandas_writes_it_is_read_as_it_was_meant(
    spark: Any, job: Callable[..., Settings], tmp_path: Path, rows: list[str], first: str
) -> None:
    table = pd.DataFrame({"id": range(len(rows)), "text": rows})
    columns = ["id", "text"] if first == "id" else ["text", "id"]
    table[columns].to_csv(tmp_path / "in/a.csv", index=False)
    read = _read(spark, job())
    assert _pairs(read) == {(str(i), text) for i, text in enumerate(rows)}
    assert read.counts.malformed == {}


@pytest.mark.long
def test_a_quote_that_is_not_closed_is_told(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "in/a.csv").write_text('id,text\n1,"open\n2,b\n3,c\n')
    (tmp_path / "in/b.csv").write_text('id,text\n1,"a letter,\nof several lines\n"\n2,"""quoted""\nand more"\n')
    read = _read(spark, job())
    assert [Path(uri).name for uri in read.counts.swallowing] == ["a.csv"]
    assert "a quote that is not closed" in read.told[0]


def test_pretty_printed_json_names_the_setting(spark: Any, job: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "in/a.json").write_text('[\n  {\n    "id": 1,\n    "text": "a"\n  }\n]\n')
    with pytest.raises(InputError, match="multiLine: true"):
        _read(spark, job("json"))
    assert _pairs(_read(spark, job("json", options={"multiLine": True}))) == {(1, "a")}


def test_an_array_of_which_a_record_fits_names_the_setting(
    spark: Any, job: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "in/a.json").write_text('[\n{"id": 1, "text": "a"},\n{"id": 2, "text": "b"}\n]\n')
    (tmp_path / "in/b.json").write_text('[{"id": 3, "text": "c"},\n{"id": 4, "text": "d"}]\n')
    told = _read(spark, job("json")).told
    assert len(told) == 1
    assert all(part in told[0] for part in ("a.json", "b.json", "multiLine: true"))


_RECORDS = [{"id": 1, "text": "a"}, {"id": 2, "text": '}{"a": 1'}, {"id": 3, "text": "} {"}]


@pytest.mark.parametrize("hold", [False, True], ids=["large", "small"])
@pytest.mark.parametrize("lines", [False, True], ids=["in a line", "in a file"])
def test_json_records_behind_another_are_read_as_well(
    spark: Any, job: Callable[..., Settings], tmp_path: Path, lines: bool, hold: bool
) -> None:
    between = ["\n", "", ",\n"] if lines else [" ", "", ", "]
    for number, mark in enumerate(between):
        (tmp_path / f"in/{number}.json").write_text(mark.join(map(json.dumps, _RECORDS)))
    (tmp_path / "in/array.json").write_text(json.dumps(_RECORDS))
    (tmp_path / "in/nested.json").write_text('{"id": 4, "text": "d", "more": [{"a": 1}, {"a": 2}]}')
    (tmp_path / "in/cut.json").write_text('{"id": 5, "text": "e"} {"id": 6, "te')
    (tmp_path / "in/behind.json").write_text('{"id": 7, "text": "f"} and more')
    (tmp_path / "in/broken.json").write_text('{"id": 8, "more": [{"a": 1}], "text": "g')
    read = _read(spark, job("json", options={"multiLine": lines}), hold=hold)
    records = [(row["id"], row["text"], row["_corrupt_record"]) for row in read.frame.collect()]
    whole = [(record["id"], record["text"], None) for record in _RECORDS] * 4
    whole += [(4, "d", None), (5, "e", None), (7, "f", None)]
    assert sorted(row for row in records if row[2] is None) == sorted(whole)
    assert sorted(row[2] for row in records if row[2] is not None) == [
        "and more", '{"id": 6, "te', '{"id": 8, "more": [{"a": 1}], "text": "g',
    ]  # fmt: skip
    assert {Path(uri).name: rows for uri, rows in read.counts.malformed.items()} == {
        "behind.json": 1, "broken.json": 1, "cut.json": 1,
    }  # fmt: skip


_APART = [
    ('{"id": 1}, {"id": 2},', [1, 2], []),
    ('{"id": 1};{"id": 2}', [1, 2], []),
    ('{"id": 1}\x00{"id": 2}', [1, 2], []),
    ("{'id': 1}{'id': 2}", [1, 2], []),
    ('{"id": 1} {"a\\"b": 1, "id": 2}', [1, 2], []),
    ('[{"id": 1}][{"id": 2}]', [1, 2], []),
    ('{"id": 1} [{"id": 2}, {"id": 3}]', [1, 2, 3], []),
    ('{"id": 1}{}', [1, None], []),
    ('{"id": 1, "v": NaN}{"id": 2, "v": NaN}', [1, 2], []),
    ('{"id": 1, "v": NaN}', [1], []),
    ('{"id": 1}]', [1], []),
    ('{"id": 1, "tags": ["}{", ":)"]}', [1], []),
    ('{"id": 1}{"id": 2} and more', [1, 2], ["and more"]),
    ('{"id": 1} and {"id": 2}', [], ['{"id": 1} and {"id": 2}']),
    ('{"id": 1}, "id": 2}', [], ['{"id": 1}, "id": 2}']),
    ('{"id": 1, "l": [{"id": 2} {"id": 3}]}', [], ['{"id": 1, "l": [{"id": 2} {"id": 3}]}']),
    ('{"id": 1, "t": "} {\\"id\\": 7"} {"id": 2, "t": "}{"}', [1, 2], []),
    ('{"id": 1} {id: 2}', [], ['{"id": 1} {id: 2}']),
]


@pytest.mark.parametrize("hold", [False, True], ids=["large", "small"])
def test_whatever_follows_a_json_record_is_a_row_or_told(
    spark: Any, job: Callable[..., Settings], tmp_path: Path, hold: bool
) -> None:
    for number, (line, _, _) in enumerate(_APART):
        data = (line + "\n").encode()
        name, packed = (f"in/{number}.json.gz", gzip.compress(data)) if number % 2 else (f"in/{number}.json", data)
        (tmp_path / name).write_bytes(packed)
    (tmp_path / "in/text.json").write_text('{"id": 9, "text": "a"}\n')
    found: dict[int, tuple[list[int | None], list[str]]] = {number: ([], []) for number in range(len(_APART))}
    for row in _read(spark, job("json"), hold=hold).frame.where("coalesce(id, 0) < 9").collect():
        ids, told = found[int(Path(row["_gristmill_file"]).name.split(".")[0])]
        ids.append(row["id"]) if row["_corrupt_record"] is None else told.append(row["_corrupt_record"])
    key = functools.partial(sorted, key=str)
    assert {n: (key(ids), told) for n, (ids, told) in found.items()} == {
        n: (key(ids), told) for n, (_, ids, told) in enumerate(_APART)
    }


@pytest.mark.long
def test_a_retry_finds_rows_that_follow_others_in_a_line(
    spark: Any, job: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "in/a.json").write_text('{"id": 1, "text": "a"}{"id": 2, "text": ""}{"id": 3, "text": " "}')
    score(job("json", output={"columns": ["id"]}))
    report = retry(job("json", input={"key": ["id"]}, output={"columns": ["id"]}))
    assert report.failed_by_code == {"empty_input": 2}


@pytest.mark.long
def test_records_behind_another_keep_their_partitions_and_files(
    spark: Any, job: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "in/day=2").mkdir()
    (tmp_path / "in/day=2/a.json").write_text('{"id": 1, "text": "a"}{"id": 2, "text": "b"}')
    read = _read(spark, job("json"))
    assert {(row["day"], row["id"]) for row in read.frame.collect()} == {(2, 1), (2, 2)}
    assert [Path(file.uri).name for file in read.counts.read or ()] == ["a.json"]
