"""The ranges of int8 vectors: measured once, the same for all increments, retries and runs of an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from jobs.errors import InputError
from jobs.folder import Folder
from jobs.job_file import load_settings
from jobs.output.job_note import find_job
from jobs.run import retry, score
from jobs.settings import Settings
from tests.embedders import make_static
from udfs import embed
from udfs.errors import SpecError

WriteJob = Callable[..., Path]
FIRST = ["a red kettle", "a very good book", "tea", "the soil of a garden", "not a dog", "blue shirt"]
LATER = ["poison", "a lamp is green"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make_static(tmp_path / "model")


@pytest.fixture
def job(write_job: WriteJob, tmp_path: Path, model: str) -> Callable[..., Settings]:
    (tmp_path / "in").mkdir()

    def make(**values: Any) -> Settings:
        score = {"model": model, "quantization": "int8", **values}
        return load_settings(write_job(input={"path": str(tmp_path / "in"), "increment_bytes": 1}, score=score))

    return make


def _write(path: Path, texts: list[str | None]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _floats(model: str, texts: list[str]) -> np.ndarray:
    return SentenceTransformer(model, device="cpu").encode(texts)


def _check(spark: Any, out: Path, wanted: np.ndarray, texts: list[str]) -> None:
    rows = spark.read.parquet(str(out)).where("outcome = 'succeeded'")
    assert rows.schema["prediction"].dataType["embedding"].dataType.simpleString() == "array<tinyint>"
    found = {row["text"]: row["prediction"]["embedding"] for row in rows.collect()}
    assert found.keys() == set(texts)
    far = np.abs(np.array([found[text] for text in texts]) - wanted.astype(int))
    assert far.max() <= 1
    assert (far == 0).mean() > 0.9


@pytest.mark.long
def test_all_of_an_output_goes_by_the_ranges_of_its_first_increment(
    spark: Any, job: Callable[..., Settings], model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _write(tmp_path / "in/1.jsonl", [*FIRST, None])
    report = score(job())
    assert any("ranges of 6 vectors" in warning for warning in report.warnings)
    _check(spark, out, quantize_embeddings(_floats(model, FIRST), "int8"), FIRST)  # as `encode` does by itself
    floats = _floats(model, FIRST)
    kept = np.array((find_job(Folder(str(out))) or {})["ranges"])
    np.testing.assert_allclose(kept, [floats.min(axis=0), floats.max(axis=0)], atol=1e-5)

    _write(tmp_path / "in/2.jsonl", LATER)
    assert score(job()).warnings == []
    wanted = quantize_embeddings(_floats(model, FIRST + LATER), "int8", ranges=kept)
    _check(spark, out, wanted, FIRST + LATER)
    assert retry(job()).succeeded == 0

    (tmp_path / "in/1.jsonl").unlink()
    score(job(), overwrite=True)
    assert (find_job(Folder(str(out))) or {})["ranges"] != kept.tolist()
    _check(spark, out, quantize_embeddings(_floats(model, LATER), "int8"), LATER)


@pytest.mark.long
def test_one_vector_is_no_range_and_ranges_that_are_given_are_taken(
    spark: Any, job: Callable[..., Settings], model: str, tmp_path: Path
) -> None:
    _write(tmp_path / "in/1.jsonl", ["tea"])
    with pytest.raises(InputError, match=r"give score\.ranges"):
        score(job())
    floats = _floats(model, FIRST)
    ranges = np.stack([floats.min(axis=0), floats.max(axis=0)])
    score(job(ranges=ranges.tolist()), overwrite=True)
    _check(spark, tmp_path / "out", quantize_embeddings(_floats(model, ["tea"]), "int8", ranges=ranges), ["tea"])


def test_bits_and_half_floats_are_binary_columns(spark: Any, model: str) -> None:
    frame = spark.createDataFrame([("tea",), ("a red kettle",)], "text string").coalesce(1)
    floats = _floats(model, ["tea", "a red kettle"])
    for how, dtype, wanted in (("binary", "int8", quantize_embeddings(floats, "binary")), ("float16", "<f2", floats)):
        made = frame.select(embed(model, quantization=how)("text").alias("p"))
        assert made.schema["p"].dataType["embedding"].dataType.simpleString() == "binary"
        found = [np.frombuffer(bytes(row["p"]["embedding"]), dtype) for row in made.collect()]
        np.testing.assert_allclose(np.array(found), wanted, atol=1e-3)


def test_a_udf_of_bytes_is_given_its_ranges(model: str) -> None:
    with pytest.raises(SpecError, match="needs ranges"):
        embed(model, quantization="int8")
