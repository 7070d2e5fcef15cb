from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

from jobs.bench import contenders
from tests.models import make_classifier, make_encoder
from udfs.model.files import open_model
from udfs.model.loading import leave_masks_unread, masks_as_usual
from udfs.tasks.registry import make_spec, make_task

TEXTS = ["red kettle", "tea", "lamp"]
LENGTHS = np.array([4, 3, 3])


class StandIn:
    """For sentence-transformers, with a clock of its own; notes its batch sizes and the masks that it sees."""

    now = 0.0
    seconds: dict[int, float]
    calls: list[int]
    masks: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def encode(self, texts: list[str], *, batch_size: int, **_: Any) -> torch.Tensor:
        StandIn.calls.append(batch_size)
        StandIn.masks.append(_masks())
        if StandIn.seconds[batch_size] < 0:
            raise torch.OutOfMemoryError
        StandIn.now += StandIn.seconds[batch_size]
        return torch.zeros(len(texts), 32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", StandIn)
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: StandIn.now)
    StandIn.seconds, StandIn.calls, StandIn.masks = {32: 3.0, 128: 1.0, 512: 2.0}, [], []
    return StandIn


@pytest.fixture
def unread_masks() -> Iterator[None]:
    """The masks that an engine on a GPU registers go with the test."""
    with masks_as_usual():
        leave_masks_unread()
        yield


@pytest.mark.parametrize(
    ("device", "seconds", "batch"),
    [("cpu", {}, 32), ("cuda:0", {}, 128), ("cuda:0", {128: 4.0}, 512), ("cuda:0", {128: -1.0, 512: -1.0}, 32)],
)
def test_sentence_transformers_has_the_batches_that_are_fastest_on_a_gpu(
    device: str,
    seconds: dict[int, float],
    batch: int,
    tmp_path: Path,
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contenders, "_device", lambda: device)
    stand_in.seconds.update(seconds)
    spec = make_spec(task="feature-extraction", model=make_encoder(tmp_path))
    (made,) = contenders.sentence_transformers(spec, open_model(spec.model), TEXTS, LENGTHS, precisions=("float32",))
    stand_in.calls.clear()
    made.run()
    assert stand_in.calls == [batch]


def test_other_models_have_transformers_own_masks(
    tmp_path: Path, stand_in: type[StandIn], unread_masks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = _masks()
    spec = make_spec(task="feature-extraction", model=make_encoder(tmp_path / "encoder"))
    for made in contenders.sentence_transformers(spec, open_model(spec.model), TEXTS, LENGTHS):
        made.run()
    seen = stand_in.masks
    spec = make_spec(task="text-classification", model=make_classifier(tmp_path / "classifier", ["bad", "good"]))
    files = open_model(spec.model)
    (made,) = contenders.pipeline(spec, files, make_task(spec, files), TEXTS, LENGTHS)
    call = torch.nn.functional.embedding
    monkeypatch.setattr(
        torch.nn.functional, "embedding", lambda *a, **options: (seen.append(_masks()), call(*a, **options))[1]
    )
    made.run()
    assert len(seen) > 2
    assert {tuple(masks) for masks in seen} == {(sdpa_mask, eager_mask)}
    assert _masks() == ours != [sdpa_mask, eager_mask]


def _masks() -> list[Any]:
    return [AttentionMaskInterface()[name] for name in ("sdpa", "eager")]
