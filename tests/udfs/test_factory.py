"""UDFs: what they take, and those of models that write, under Spark."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.cross_encoders import make_cross_encoder
from tests.random_writers import save_writer, write_alone
from udfs import classify, embed, find_entities, generate, rerank, summarize, translate, zero_shot
from udfs.errors import SpecError
from udfs.tasks.registry import KINDS

NEW = 6
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "precision": "float32"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("t5"), "T5")


@pytest.fixture(scope="module")
def posts(spark: Any) -> Any:
    rows = [(1, "red tea", "red"), (2, None, None), (3, "a spade", "")]
    return spark.createDataFrame(rows, "id int, text string, colour string").coalesce(1)


def _write_alone(auto: Any, path: str, prompt: str) -> str:
    """What transformers writes to a prompt, as it stands."""
    tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    ids = np.array(tokenizer.encode(prompt).ids, dtype=np.int32)
    return tokenizer.decode(write_alone(auto.from_pretrained(path), ids, max_new_tokens=NEW)).removeprefix(" ")


def _check(rows: list[Any], wanted: dict[int, str]) -> None:
    """Rows of a null text fail alone; the others have the answers that are wanted."""
    assert {row["id"]: row["p"]["text"] for row in rows} == {**wanted, 2: None}
    assert {row["id"]: row["p"]["error"] and row["p"]["error"]["code"] for row in rows} == {
        1: None,
        2: "empty_input",
        3: None,
    }
    assert all(0 <= row["p"]["usage"]["output_tokens"] <= NEW for row in rows)
    assert {row["p"]["finish_reason"] for row in rows} <= {"stop", "length", None}


@pytest.mark.long
def test_generate_answers_a_chat_over_columns(posts: Any, decoder: str) -> None:
    from pyspark.sql import functions as F

    ask = generate(decoder, messages=[("user", "{{ text }} in {{ colour }}")], **OPTIONS)
    rows = posts.withColumn("p", ask(F.struct("text", "colour"))).select("id", "p").collect()
    chats = {1: "red tea in red", 3: "a spade in "}
    wanted = {i: f"<s><user>{asked}</user><assistant>" for i, asked in chats.items()}
    _check(rows, {i: _write_alone(AutoModelForCausalLM, decoder, prompt) for i, prompt in wanted.items()})


@pytest.mark.long
def test_summarize_has_a_column_s_texts_shortened(posts: Any, t5: str) -> None:
    rows = posts.withColumn("p", summarize(t5, **OPTIONS)("text")).select("id", "p").collect()
    texts = {1: "summarize: red tea", 3: "summarize: a spade"}
    _check(rows, {i: _write_alone(AutoModelForSeq2SeqLM, t5, text) for i, text in texts.items()})


@pytest.mark.long
def test_translate_in_sql(spark: Any, posts: Any, t5: str) -> None:
    posts.createOrReplaceTempView("posts")
    spark.udf.register("in_german", translate(t5, "de", source_lang="en", **OPTIONS))
    rows = spark.sql("SELECT id, in_german(text) AS p FROM posts").collect()
    texts = {1: "translate English to German: red tea", 3: "translate English to German: a spade"}
    _check(rows, {i: _write_alone(AutoModelForSeq2SeqLM, t5, text) for i, text in texts.items()})


@pytest.mark.long
@pytest.mark.parametrize("arrow", [True, False], ids=["arrow", "pandas"])
def test_rerank_judges_two_columns_or_a_struct(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow: bool
) -> None:
    from pyspark.sql import functions as F
    from sentence_transformers import CrossEncoder

    monkeypatch.setattr("udfs.factory.HAS_ARROW_UDF", arrow)
    path = make_cross_encoder(tmp_path)
    rows = [(1, "red tea", "a kettle"), (2, "red tea", None), (3, "soil", "the garden is red"), (4, None, "tea")]
    found = spark.createDataFrame(rows, "id int, q string, d string").coalesce(1)
    judge, by_struct = rerank(path, precision="float32"), rerank(path, text="q", text_pair="The {{ d }}!")
    found.createOrReplaceTempView("found")
    spark.udf.register("judge", judge)
    told = found.select("id", judge("q", "d").alias("p"), by_struct(F.struct("q", "d")).alias("s")).collect()
    in_sql = spark.sql("SELECT judge(q, d).score AS score FROM found").collect()
    model = CrossEncoder(path, device="cpu")
    expected = [model.predict((q, d)) if q and d else None for _, q, d in rows]
    assert [row["p"]["score"] for row in told] == pytest.approx(expected, abs=1e-4)
    assert [row["score"] for row in in_sql] == pytest.approx(expected, abs=1e-4)
    assert [row["p"]["error"] and row["p"]["error"]["code"] for row in told] == [None, "empty_input"] * 2
    assert told[0]["s"]["score"] == pytest.approx(model.predict(("red tea", "The a kettle!")), abs=0.02)


@pytest.mark.parametrize(
    ("function", "task"),
    [
        (embed, "feature-extraction"),
        (classify, "text-classification"),
        (rerank, "text-classification"),
        (zero_shot, "zero-shot-classification"),
        (find_entities, "token-classification"),
        (generate, "text-generation"),
        (summarize, "summarization"),
        (translate, "translation"),
    ],
)
def test_a_function_takes_and_tells_every_option_of_its_task(function: Callable[..., Any], task: str) -> None:
    taken, told = inspect.signature(function).parameters, inspect.getdoc(function) or ""
    for option in fields(KINDS[task].options):
        name = {"json_schema": "schema"}.get(option.name, option.name)
        assert name in taken
        assert f"\n    {name}: " in told
    assert {"revision", "max_tokens", "overflow", "precision"} <= taken.keys()
    assert "OPTIONS" not in told
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in taken.values())


def test_an_option_that_there_is_not_is_told() -> None:
    with pytest.raises(SpecError, match="there is no option maxtokens"):
        embed("m", maxtokens=3)
