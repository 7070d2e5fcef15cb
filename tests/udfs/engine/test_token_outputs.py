"""Outputs that are a row a token, from the model through the engine's process back to their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.models import WORDS, make_tagger
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel, make_answer
from udfs.engine.scheduler import Scheduler
from udfs.local import LocalEngine
from udfs.tasks.registry import make_spec
from udfs.wire.faults import FAULTY
from udfs.wire.items import Items
from udfs.wire.messages import answer_from_arrow, answer_to_arrow
from udfs.worker.scoring import score, score_with


@pytest.mark.usefixtures("top")
def test_entities_come_through_an_engines_process_as_they_are(tmp_path: Path) -> None:
    spec = make_spec(
        task="token-classification", model=make_tagger(tmp_path / "m", ["O", "B-X", "I-X", "Y"]), precision="float32",
        max_batch_tokens=40, window_rows=13,
    )  # fmt: skip
    texts = pa.array([" ".join(WORDS[i % 20 : i % 20 + i % 9 + 1]) for i in range(40)])
    with LocalEngine(spec) as engine:
        here = [row for result in score_with(engine, [texts], spec) for row in result.to_pylist()]
    there = [row for result in score([texts], spec) for row in result.to_pylist()]
    assert any(row["entities"] for row in here)
    for row, other in zip(here, there, strict=True):
        assert row["error"] is other["error"] is None
        spots = [[(e["entity"], e["start"], e["end"], e["word"]) for e in r["entities"]] for r in (row, other)]
        assert spots[0] == spots[1]


def test_rows_of_tokens_find_their_items_whatever_the_batches() -> None:
    scheduler = Scheduler(Budget(4, 1), pad_multiple=0, lanes=1, per_token=True)
    lengths = [[1, 3, 2], [1, 1, 4]]
    for number, part in enumerate(lengths):
        ids = (100 * number + np.arange(sum(part))).astype(np.int32)
        scheduler.put(Parcel("c", number, Items(ids, np.concatenate([[0], np.cumsum(part)]))))
    for _ in range(20):
        if scheduler.idle():
            break
        batch = scheduler.take()
        assert batch is not None
        items = batch.round.items.take(batch.indices)
        if 101 in items.ids:
            scheduler.fail(batch, FAULTY)
        else:
            scheduler.finish(batch, items.ids[:, None].astype(np.float32), items.lengths)
    scheduler.end("c")
    for parcel in scheduler.answers("c"):
        answer = answer_from_arrow(parcel.number, answer_to_arrow(make_answer(parcel, 1, per_token=True)))
        assert answer.offsets is not None
        fine = np.repeat(answer.faults, np.diff(answer.offsets)) == 0
        assert answer.values[fine, 0].tolist() == parcel.items.ids[fine].tolist()
        assert np.isnan(answer.values[~fine]).all()


def test_a_parcel_whose_items_all_fail_has_a_row_for_each_token() -> None:
    parcel = Parcel("c", 0, Items(np.arange(5, dtype=np.int32), np.array([0, 2, 5])))
    parcel.put_fault(np.array([0, 1]), FAULTY)
    assert make_answer(parcel, 3, per_token=True).values.shape == (5, 3)
