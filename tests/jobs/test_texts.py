"""What the model reads of columns of every type, by all the ways there are, under Spark."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from jobs.errors import InputError
from jobs.increments.plan import take_samples, text_of
from jobs.input.kinds import check_text_types
from jobs.settings import Settings
from tests.conftest import MINILM
from udfs.factory import make_reader
from udfs.tasks.text_generation import make_asker
from udfs.text.templates import read_objects, read_texts
from udfs.text.values import from_objects

ZONE = "America/New_York"
JOB: dict[str, Any] = {
    "input": {"query": "SELECT 1"},
    "output": {"path": "/nowhere/out"},
    "score": {"task": "feature-extraction", "model": MINILM, "text": "text"},
}
COLUMNS = """
  'a red kettle' AS title, CAST(x'ff61ff' AS string) AS latin, true AS flag, CAST(3 AS tinyint) AS small,
  9007199254740993 AS large, CAST(4.1 AS float) AS price, 0.1D AS share, 12.50 AS cost,
  CAST(0 AS decimal(20, 18)) AS tiny,
  date'2024-01-02' AS day, timestamp'2024-01-02 03:04:05.12' AS at, timestamp_ntz'2024-07-02 03:04:05' AS wall,
  timestamp'1850-01-02 03:04:05' AS old, binary('tea') AS raw, parse_json('{"a": null, "b": [1, 2.50]}') AS v,
  array('a', null) AS tags, map('color', 'red', 'gone', null) AS attrs, map(1, 'one') AS by_number,
  named_struct('items', 3, 'values', CAST(4.1 AS float), 'none', CAST(null AS string), 'v', parse_json('[1]')) AS o,
  array(named_struct('name', 'Ann', 'day', date'2024-01-02'), named_struct('name', null, 'day', null)) AS authors,
  null AS nothing, 'r' AS range, 'd' AS dict, 's' AS self, 'odd' AS `first name`, 'dot' AS `a.b`, 'in' AS `in`,
  'tick' AS `a``b`, interval '1-2' year to month AS months, interval '1 02:03:04' day to second AS span,
  named_struct('m', interval '1-2' year to month) AS held
"""
TEXTS = {
    "title": "a red kettle",
    "first name": "odd",
    "a.b": "dot",
    "a`b": "tick",
    "large": "9007199254740993",
    "price": "4.1",
    "flag": "true",
    "cost": "12.50",
    "day": "2024-01-02",
    "at": "2024-01-02 03:04:05.12",
    "raw": "tea",
    "v": '{"a":null,"b":[1,2.5]}',
    "months": "INTERVAL '1-2' YEAR TO MONTH",
    "latin": "\ufffda\ufffd",
    "{{ latin }}": "\ufffda\ufffd",
    "{{ flag }} {{ flag ~ '!' }} {{ not flag }}": "true true! false",
    "{{ small }} {{ large }} {{ price }} {{ share }} {{ cost }} {{ tiny }}": (
        "3 9007199254740993 4.1 0.1 12.50 0.000000000000000000"
    ),
    "{{ day }} {{ at }} {{ wall }}": "2024-01-02 2024-01-02 03:04:05.12 2024-07-02 03:04:05",
    "{{ at.year }} {{ at ~ '' }}": "2024 2024-01-02 03:04:05.12",
    "{{ old }}": "1850-01-02 03:04:05",
    "{{ raw }} {{ v }} {{ o.v }}": 'tea {"a":null,"b":[1,2.5]} [1]',
    "{{ tags | join(',') }}|{{ tags }}": 'a,|["a"]',
    "{{ attrs.color }} {{ attrs['color'] }}{{ attrs.gone }}{{ attrs.none }} {{ by_number[1] }}": "red red one",
    "{% for k, v in attrs.items() %}{{ k }}={{ v }};{% endfor %}": "color=red;gone=;",
    "{{ o.items }} {{ o.values }}{{ o.none }}": "3 4.1",
    "{{ authors | map(attribute='name') | join('/') }} {{ authors[0].day }}{{ authors[7].day }}": "Ann/ 2024-01-02",
    "{{ title }}{{ nothing }}{{ nothing | upper }}{{ nothing ~ '!' }}": "a red kettle!",
    "{{ range }} {{ dict }} {{ self }} {% for i in range(2) %}{{ i }}{% endfor %}": "r d s 01",
    "{{ col('first name') }} {{ col('a.b') }} {{ col('in') }} {{ col('a`b') }} {{ col('title') }}": (
        "odd dot in tick a red kettle"
    ),
    "{% if flag %}{% set x = title %}{% else %}{% set x = '' %}{% endif %}{{ x }}": "a red kettle",
    "{{ months }}; {{ span }}; {{ held.m }}": (
        "INTERVAL '1-2' YEAR TO MONTH; INTERVAL '1 02:03:04' DAY TO SECOND; INTERVAL '1-2' YEAR TO MONTH"
    ),
}


@pytest.fixture(scope="module")
def row(spark: Any) -> Iterator[Any]:
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", ZONE)
    yield spark.sql(f"SELECT {COLUMNS}").coalesce(1)
    spark.conf.set("spark.sql.session.timeZone", before)


def _settings(text: str) -> Settings:
    return Settings.model_validate({**JOB, "score": {**JOB["score"], "text": text}})


def _send(row: Any, *, arrow: bool) -> Any:
    """A row of all columns as Spark sends it to a UDF: a column of structs in Arrow, or what pandas has of it."""
    from pyspark.sql import functions as F

    every = "".join(f"{{{{ col({name!r}) }}}}" for name in row.columns)

    def keep_arrow(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for batch in batches:
            yield pa.array([pickle.dumps(batch)])

    def keep_pandas(batches: Iterator[pd.DataFrame]) -> Iterator[pd.Series]:
        for batch in batches:
            yield pd.Series([pickle.dumps(batch)])

    keep_arrow.__annotations__ = {"batches": Iterator[pa.Array], "return": Iterator[pa.Array]}
    keep_pandas.__annotations__ = {"batches": Iterator[pd.DataFrame], "return": Iterator[pd.Series]}
    keep = F.arrow_udf(keep_arrow, "binary") if arrow else F.pandas_udf(keep_pandas, "binary")
    return pickle.loads(row.select(keep(text_of(row, _settings(every))).alias("sent")).collect()[0][0])


def _read(sent: Any, text: str) -> list[str | None]:
    render = make_asker(_settings(text).spec())
    if isinstance(sent, pa.Array):
        return read_texts(sent if render else sent.field(text), render).texts.to_pylist()
    columns = {name: from_objects(column) for name, column in sent.items() if render or name == text}
    return read_objects(columns, render).texts.to_pylist()


@pytest.mark.parametrize("arrow", [True, False], ids=["arrow", "pandas"])
def test_a_column_of_any_type_is_read_as_it_was_meant(row: Any, arrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.factory.HAS_ARROW_UDF", arrow)
    sent = _send(row, arrow=arrow)
    assert {text: _read(sent, text) for text in TEXTS} == {text: [told] for text, told in TEXTS.items()}


def test_dates_are_read_alike_whatever_their_year(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    years = ["0001", "-0044", "1677", "2026", "9999", "+10000", "+290000"]
    told = ", ".join(f"named_struct('d', date'{y}-03-05', 'at', timestamp'{y}-03-05 01:02:03.5')" for y in years)
    frame = spark.sql(
        f"SELECT array({told}, null) AS times, map(date'0001-01-01', timestamp_ntz'0001-01-01 00:00') AS m"
    )
    text = "{% for t in times %}{{ t.d }},{{ t.at }},{{ t.d.year }} {% endfor %}{{ m }}"
    settings = _settings(text)
    read = []
    for arrow in (True, False):
        monkeypatch.setattr("udfs.factory.HAS_ARROW_UDF", arrow)
        made = make_reader(settings.spec(), arrow=arrow)(text_of(frame, settings))
        read.append(frame.select(made.alias("read")).select("read.*").collect()[0])
    assert read[0] == read[1]
    assert "-0044-03-05,-0044-03-05 01:02:03.5," in read[0][0]
    assert "0001-03-05,0001-03-05 01:02:03.5,1 " in read[0][0]
    assert "+10000-03-05" in read[0][0]


def test_the_dry_run_shows_what_is_read(row: Any) -> None:
    (sample,) = take_samples(row, _settings("a.b"))
    assert (sample.text, sample.error) == ("dot", None)


def test_the_dry_run_shows_why_a_text_is_not_scored(row: Any) -> None:
    score = {**JOB["score"], "text": "title", "max_tokens": 4, "overflow": "fail"}
    (sample,) = take_samples(row, Settings.model_validate({**JOB, "score": score}))
    assert (sample.text, sample.error, sample.tokens) == (None, "input_too_long", 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tags", r"names tags, which is array<string> and no text by itself; write {{ tags \| join"),
        ("attrs", r"no text by itself; write what to read of it, as in {{ attrs\['key'\] }}"),
        ("o", r"no text by itself; write what to read of it, as in {{ o.items }}"),
        ("{{ o.titel }}", "reads o.titel, but o has the fields items, values, none, v"),
        ("{% for a in authors %}{{ a.nmae }}{% endfor %}", r"reads authors\[0\].nmae, but .* name, day"),
        ("{{ authors | join(', ', attribute='nmae') }}", r"authors\[0\].nmae"),
        ("{{ authors.name }}", r"authors is an array; take authors\[0\].name"),
        ("{{ title.name }}", "title is string and has no fields"),
        ("{{ v.a }}", "v is a VARIANT"),
    ],
)
def test_what_is_no_text_or_not_there_is_refused_with_what_to_write(row: Any, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_text_types(row.schema, _settings(text))


def test_a_column_that_is_a_chat_is_told_from_others(spark: Any) -> None:
    score = {"task": "text-generation", "model": "m", "messages": "talk"}
    settings = Settings.model_validate({**JOB, "score": score})
    assert settings.text_columns() == ("talk",)
    told = spark.sql("SELECT array(named_struct('content', 'tea', 'role', 'user', 'at', now())) AS talk")
    check_text_types(told.schema, settings)
    for other in ("'tea'", "array('tea')", "array(named_struct('role', 'user', 'content', array('tea')))"):
        with pytest.raises(InputError, match=r"score\.messages: the (column talk is|template reads talk)"):
            check_text_types(spark.sql(f"SELECT {other} AS talk").schema, settings)
