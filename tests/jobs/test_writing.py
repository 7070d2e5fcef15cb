"""Jobs that write, with a real model: `python -m tests.fetch_smollm2` brings it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.bench.corpus import docstrings
from jobs.job_file import load_settings
from jobs.run import score
from jobs.settings import Settings
from tests.conftest import ROOT
from tests.fetch_smollm2 import TARGET
from udfs.generation.loading import find_ends
from udfs.local import LocalEngine
from udfs.model.files import ModelFiles, open_model
from udfs.model.loading import load_transformer
from udfs.tasks.registry import make_spec, make_task
from udfs.tasks.text_generation import make_asker
from udfs.wire.items import Items
from udfs.wire.written import STOP

pytestmark = pytest.mark.skipif(not TARGET.is_dir(), reason="python -m tests.fetch_smollm2 brings the model")


def _settings(name: str, tmp_path: Path, *overrides: str) -> Settings:
    conf = ROOT / f"conf/{name}.yaml"
    source = load_settings(conf).input.path
    rows = (ROOT / str(source)).read_text().splitlines()[:8]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    own = [f"input.path={tmp_path}/rows.jsonl", f"output.path={tmp_path}/out", f"score.model={TARGET}"]
    return load_settings(conf, [*own, *overrides])


@pytest.mark.long
def test_an_answer_is_one_of_the_choices(spark: Any, tmp_path: Path) -> None:
    report = score(_settings("feedback_sentiment_llm", tmp_path, "batching.max_batch_tokens=64"))
    rows = spark.read.parquet(str(tmp_path / "out")).where("outcome = 'succeeded'").select("prediction.*").collect()
    assert len(rows) == report.succeeded > 0
    assert {row["text"] for row in rows} <= {"positive", "negative", "neutral"}
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert report.output_tokens == sum(row["usage"]["output_tokens"] for row in rows) > 0
    assert sum(row["usage"]["cached_tokens"] for row in rows) > 0  # the instruction is computed once


@pytest.mark.long
def test_an_answer_matches_its_schema_or_fails(spark: Any, tmp_path: Path) -> None:
    score(_settings("seo_analysis", tmp_path, "score.max_new_tokens=48", "limits.max_error_rate=1"))
    for row in spark.read.parquet(str(tmp_path / "out")).select("outcome", "prediction.*").collect():
        if row["outcome"] == "succeeded":
            answer = json.loads(row["text"])
            assert answer["title"] == row["answer"]["title"]
        else:
            assert (row["error"]["code"], row["answer"]) == ("invalid_output", None)


@pytest.mark.long
def test_a_row_has_an_answer_for_each_language(spark: Any, tmp_path: Path) -> None:
    settings = _settings("social_posts", tmp_path, "score.max_new_tokens=8")
    score(settings)
    rows = spark.read.parquet(str(tmp_path / "out")).select("prediction.*").collect()
    assert len(rows) == 8
    assert all(set(row["texts"]) == set(settings.spec().options.variants) for row in rows)


@pytest.mark.long
def test_answers_are_those_of_one_prompt_at_a_time() -> None:
    lines = (ROOT / "conf/samples/documents.jsonl").read_text().splitlines()
    _check_against_generate([json.loads(line)["text"] for line in lines][:6], max_new_tokens=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_to_many_prompts_of_all_lengths_are_those_of_one_at_a_time() -> None:
    _check_against_generate(docstrings(64), max_new_tokens=32)


def _check_against_generate(texts: list[str], *, max_new_tokens: int) -> None:
    """Greedy answers are `model.generate`'s for each text as a chat of its own, token by token."""
    spec = make_spec(
        task="text-generation",
        model=str(TARGET),
        messages=(("user", "{{ text }}"),),
        max_new_tokens=max_new_tokens,
        max_tokens=512,
        precision="float32",
        max_batch_tokens=64,
    )
    files = open_model(str(TARGET))
    asker = make_asker(spec)
    assert asker is not None
    items = make_task(spec, files).tokenize([asker({"text": text})[0] for text in texts]).items
    assert len(items) == len(texts)
    with LocalEngine(spec) as engine:
        found = engine.forward(items).written or []
    for number, (answer, wanted) in enumerate(zip(found, _generate(files, items, max_new_tokens), strict=True)):
        assert answer is not None
        assert answer.ids.tolist() == wanted, f"prompt {number}"


def _generate(files: ModelFiles, items: Items, max_new_tokens: int) -> Iterator[list[int]]:
    """What transformers writes to each item alone, without the end token."""
    import torch

    torch.set_num_threads(1)
    model = load_transformer("AutoModelForCausalLM", files, device="cpu", precision="float32", attention="sdpa")
    ends = find_ends(model)
    for prompt in np.split(items.ids, items.offsets[1:-1]):
        ids = torch.from_numpy(prompt[None].astype("int64"))
        told = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
        )
        yield [token for token in told[0, ids.shape[1] :].tolist() if token not in ends]


@pytest.mark.long
def test_a_chat_s_turn_ends_an_answer_where_the_files_name_another_end(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TARGET, model)
    for name in ("generation_config.json", "config.json"):
        told = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**told, "eos_token_id": 0}))  # <|endoftext|>
    spec = make_spec(
        task="text-generation", model=str(model), messages=(("user", "{{ text }}"),), max_new_tokens=120, max_tokens=128
    )
    asker = make_asker(spec)
    assert asker is not None
    task = make_task(spec, open_model(str(model)))
    items = task.tokenize([asker({"text": "What is the capital of France? One word."})[0]]).items
    with LocalEngine(spec) as engine:
        (answer,) = engine.forward(items).written or []
    assert answer is not None
    assert answer.finish == STOP
    assert 2 not in answer.ids  # <|im_end|>
