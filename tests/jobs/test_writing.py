"""Jobs that write, with a real model: `python -m tests.fetch_smollm2` brings it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.score import score
from jobs.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.fetch_smollm2 import TARGET
from udfs.engine.local import LocalEngine
from udfs.generation.loading import find_ends
from udfs.loading import load_transformer
from udfs.models import open_model
from udfs.spec import ScoreSpec
from udfs.tasks import make_task

pytestmark = pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_smollm2 brings the model")


def _settings(name: str, tmp_path: Path, *overrides: str) -> Settings:
    conf = ROOT / f"conf/{name}.yaml"
    source = load_settings(conf).input.path
    rows = (ROOT / str(source)).read_text().splitlines()[:8]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    own = [f"input.path={tmp_path}/rows.jsonl", f"output.path={tmp_path}/out", f"score.model={TARGET}"]
    return load_settings(conf, [*own, *overrides])


def test_an_answer_is_one_of_the_choices(spark: Any, tmp_path: Path) -> None:
    report = score(_settings("feedback_sentiment_llm", tmp_path, "batching.max_batch_tokens=64"))
    rows = spark.read.parquet(str(tmp_path / "out")).where("outcome = 'succeeded'").select("prediction.*").collect()
    assert len(rows) == report.succeeded > 0
    assert {row["text"] for row in rows} <= {"positive", "negative", "neutral"}
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert report.output_tokens == sum(row["usage"]["output_tokens"] for row in rows) > 0
    assert sum(row["usage"]["cached_tokens"] for row in rows) > 0  # the instruction is computed once


def test_an_answer_matches_its_schema_or_fails(spark: Any, tmp_path: Path) -> None:
    score(_settings("seo_analysis", tmp_path, "score.max_new_tokens=48", "limits.max_error_rate=1"))
    for row in spark.read.parquet(str(tmp_path / "out")).select("outcome", "prediction.*").collect():
        if row["outcome"] == "succeeded":
            answer = json.loads(row["text"])
            assert answer["title"] == row["answer"]["title"]
        else:
            assert (row["error"]["code"], row["answer"]) == ("invalid_output", None)


def test_a_row_has_an_answer_for_each_language(spark: Any, tmp_path: Path) -> None:
    settings = _settings("social_posts", tmp_path, "score.max_new_tokens=8")
    score(settings)
    rows = spark.read.parquet(str(tmp_path / "out")).select("prediction.*").collect()
    assert len(rows) == 8
    assert all(set(row["texts"]) == set(settings.spec().variants) for row in rows)


def test_answers_are_those_of_one_prompt_at_a_time() -> None:
    spec = ScoreSpec(
        task="text-generation",
        model=str(TARGET),
        messages=(("user", "{{ text }}"),),
        max_new_tokens=12,
        precision="float32",
        max_batch_tokens=64,
    )
    texts = [json.loads(line)["text"] for line in (ROOT / "conf/samples/documents.jsonl").read_text().splitlines()][:6]
    files = open_model(str(TARGET))
    items = make_task(spec, files).tokenize([json.dumps([[[["user", t]], [0, 0, len(t)]]]) for t in texts]).items
    with LocalEngine(spec) as engine:
        found = engine.forward(items).written or []
    import torch

    torch.set_num_threads(1)
    model = load_transformer("AutoModelForCausalLM", files, device="cpu", precision="float32", attention="sdpa")
    for number, answer in enumerate(found):
        ids = torch.from_numpy(items.ids[items.offsets[number] : items.offsets[number + 1]][None].astype("int64"))
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        wanted = [token for token in alone[0, ids.shape[1] :].tolist() if token not in find_ends(model)]
        assert answer is not None
        assert answer.ids.tolist() == wanted
