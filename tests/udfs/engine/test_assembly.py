"""How an engine takes memory as it starts: after others, one copy of the weights, and with patience."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import make_encoder
from tests.random_writers import save_writer
from udfs.engine import assembly, forward
from udfs.engine.assembly import assemble
from udfs.engine.model import Model
from udfs.errors import EngineError
from udfs.generation import loading
from udfs.model import attention
from udfs.model.precision import DevicePlan
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec
from udfs.wire import turns

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def encoder(tmp_path: Path) -> ScoreSpec:
    return make_spec(task="feature-extraction", model=make_encoder(tmp_path), precision="float32", max_batch_tokens=64)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that are made while a model loads, and take no time."""
    made: list[float] = []
    sleep, here = time.sleep, threading.current_thread()

    def pause(seconds: float) -> None:
        made.append(seconds) if threading.current_thread() is here else sleep(seconds)

    monkeypatch.setattr(assembly.time, "sleep", pause)
    return made


def _raise_at_first(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, times: int) -> None:
    real, left = getattr(module, name), [times]

    def maybe(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError(FULL)
        return real(*args, **options)

    monkeypatch.setattr(module, name, maybe)


def test_engines_that_start_at_once_plan_one_after_the_other(
    encoder: ScoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, planned = [80], []

    class Takes(Model):
        def __init__(self, *args: Any, **options: Any) -> None:
            seen = free[0]
            super().__init__(*args, **options)
            time.sleep(0.2)  # the other one would have looked by now
            free[0] = seen // 2
            planned.append(seen)

    monkeypatch.setattr(assembly, "Model", Takes)
    monkeypatch.setattr(assembly, "name_gpu", lambda: "GPU of the test")
    monkeypatch.setattr(turns, "_PLACE", tmp_path)
    threads = [threading.Thread(target=lambda: assemble(encoder, cores=1).scheduler.close()) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert planned == [80, 40, 20]


def test_a_model_that_falls_back_to_padding_is_there_once(encoder: ScoreSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    load = forward.load_transformer

    def watch(*args: Any, **options: Any) -> Any:
        assert not any(model() for model in loaded), "two copies of the weights"
        model = load(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(forward, "load_transformer", watch)
    monkeypatch.setattr(attention, "attend_by_runs", refuse)
    gc.disable()
    try:
        assert Model(encoder).name.endswith("/padded")
    finally:
        gc.enable()
    assert len(loaded) == 2


def test_a_gpu_that_is_full_while_packing_is_tried_is_tried_again(
    encoder: ScoreSpec, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    _raise_at_first(monkeypatch, attention, "attend_by_runs", 2)
    engine = assemble(encoder, cores=1)
    engine.scheduler.close()
    assert engine.name.endswith("/packed")
    assert len(pauses) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_a_gpu_that_stays_full_is_an_error_that_says_so(
    encoder: ScoreSpec, shared: bool, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    _raise_at_first(monkeypatch, attention, "attend_by_runs", 1000)
    monkeypatch.setattr(assembly, "is_shared", lambda: shared)
    with pytest.raises(EngineError, match=r"memory is out as model .* loads: CUDA out of memory"):
        assemble(encoder, cores=1)
    assert sum(pauses) >= 60 if shared else not pauses


def _load_weights_full(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    from transformers import AutoModelForCausalLM

    _raise_at_first(monkeypatch, AutoModelForCausalLM, "from_pretrained", times)


def _probe_full(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    _raise_at_first(monkeypatch, loading.Decoder, "step", times)


@pytest.mark.parametrize("fill", [_load_weights_full, _probe_full])
def test_a_full_gpu_is_not_taken_for_a_model_that_does_not_write(
    fill: Callable[[pytest.MonkeyPatch, int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
) -> None:
    spec = make_spec(task="text-generation", model=save_writer(tmp_path), precision="float32", max_new_tokens=4)
    fill(monkeypatch, 1)
    assemble(spec, cores=1).scheduler.close()
    assert len(pauses) == 1


def test_what_vllm_has_loaded_is_let_go_before_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Weights:
        pass

    loaded: list[Any] = []

    def fail(*_: Any, **__: Any) -> Any:
        weights = Weights()
        weights.itself = weights  # type: ignore[attr-defined]  # as modules refer to each other
        loaded.append(weakref.ref(weights))
        raise loading.ModelError("it does not load in vLLM")

    def load(*_: Any) -> list[Any]:
        assert loaded[0]() is None
        return []

    monkeypatch.setattr(loading, "takes_vllm", lambda *_: True)
    monkeypatch.setattr(loading, "load_vllm", fail)
    monkeypatch.setattr(loading, "_load_decoders", load)
    spec = make_spec(task="text-generation", model=save_writer(tmp_path), max_new_tokens=4)
    gc.disable()
    try:
        loading.load_writer(spec, DevicePlan("cpu", "float32", ""), name="e", lanes=1)
    finally:
        gc.enable()
