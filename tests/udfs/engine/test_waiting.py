"""A lane waits for its GPU once a micro-batch, for the answers: nothing before asks the device for a number.

Tensors on torch's `meta` device have shapes and no numbers, and raise where they are asked for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import import_utils

from tests.models import PACKS, make_classifier, make_encoder
from tests.random_writers import DECODERS, make_writer
from udfs.engine.batch import BatchMaker
from udfs.engine.forward import load_forward
from udfs.generation import attention
from udfs.generation.attention import CACHED, register_cached
from udfs.generation.cache import Arena
from udfs.generation.found import Found
from udfs.generation.graphs import Graphs, Shape
from udfs.model.files import open_model
from udfs.model.limits import first_position
from udfs.model.loading import leave_masks_unread, masks_as_usual
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.items import Items

PADDED = ["MPNet", "DebertaV2", "MegatronBert"]


@pytest.fixture(autouse=True)
def _own_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The masks that are registered for a GPU go with the test."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with masks_as_usual():
        leave_masks_unread()
        yield


def _run(spec: ScoreSpec, *, packed: bool) -> torch.Tensor:
    files = open_model(spec.model)
    make_batch = BatchMaker(
        "meta", packed, pad_multiple=0 if packed else 8, first_position=first_position(files.config)
    )
    forward = load_forward(make_task(spec, files), files, device="meta", precision="bfloat16", make_batch=make_batch)
    items = Items(np.arange(20, dtype=np.int32) + 4, np.array([0, 9, 17, 20]))
    with torch.inference_mode():
        return forward(make_batch(items, np.arange(3)))


@pytest.mark.parametrize(("kind", "packed"), [*((k, True) for k in PACKS), *((k, False) for k in [*PACKS, *PADDED])])
@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_no_encoder_asks_the_device_for_a_number(tmp_path: Path, kind: str, packed: bool, task: Any) -> None:
    encodes = task == "feature-extraction"
    path = make_encoder(tmp_path, kind=kind) if encodes else make_classifier(tmp_path, ["bad", "good"], kind=kind)
    outputs = _run(make_spec(task=task, model=path), packed=packed)
    assert outputs.shape == (3, 32 if encodes else 2)
    assert outputs.is_meta


WRITES, READS = Shape(32, 32, 1), Shape(32, 128, 64)


@pytest.mark.parametrize("shape", [WRITES, READS])
@pytest.mark.parametrize("kind", sorted(DECODERS.keys() - {"Gemma2"}))
def test_no_step_that_is_recorded_asks_the_device_for_a_number(
    kind: str, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own kernel, which knows what it is told; transformers is told that a stream is captured, as it is."""
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    monkeypatch.setattr(attention, "goes_by_kernel", lambda *_: True)
    register_cached()
    model = make_writer(kind).to("meta", torch.bfloat16)
    model.set_attn_implementation(CACHED)
    graphs = Graphs(model, Arena(256), longest=64, device="meta")
    with torch.inference_mode():
        logits = graphs._call(torch.zeros(shape.numbers, dtype=torch.int64, device="meta"), shape)
    assert logits.shape == (32, 97)
    assert logits.is_meta


def test_the_next_step_is_launched_without_asking_for_the_tokens_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    monkeypatch.setattr(attention, "goes_by_kernel", lambda *_: True)
    register_cached()
    model = make_writer("Llama").to("meta", torch.bfloat16)
    model.set_attn_implementation(CACHED)
    graphs, begins = Graphs(model, Arena(256), longest=64, device="meta"), np.array([0, 64, 128])
    fixed = torch.zeros(WRITES.numbers, dtype=torch.int64, device="meta")
    graphs._recordings[WRITES] = fixed, lambda: graphs._call(fixed, WRITES)
    with torch.inference_mode():
        last = Found(graphs._call(fixed, WRITES))
        logits = graphs.run_after(last.tokens_of(np.array([0, 2, 3])), begins, np.array([5, 6, 7]))
        assert logits is not None
        assert Found(logits).tokens.is_meta
    assert logits.shape == (3, 97)
    assert (
        graphs.run_after(torch.zeros(40, device="meta"), np.arange(40), np.arange(40)) is None
    )  # of so many nothing is recorded
