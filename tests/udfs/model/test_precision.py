from __future__ import annotations

import pytest
import torch

from udfs.errors import EngineError
from udfs.executor import visible_devices
from udfs.model.precision import _best_on_cpu, _best_on_cuda, _measure_products, plan_device


@pytest.mark.parametrize(
    ("capability", "best"),
    [((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_a_gpu_gets_what_it_multiplies(capability: tuple[int, int], best: str) -> None:
    assert _best_on_cuda(capability)[0] == best


@pytest.mark.parametrize(
    ("flags", "bfloat16", "best"),
    [
        ({}, 9e9, "float32"),
        ({"avx512_f": True}, 9e9, "float32"),
        ({"avx512_bf16": True}, 9e9, "bfloat16"),
        ({"avx512_bf16": True}, 1e9, "float32"),
        ({"amx_bf16": True}, 9e9, "bfloat16"),
    ],
)
def test_a_cpu_gets_what_it_multiplies_fastest(flags: dict[str, bool], bfloat16: float, best: str) -> None:
    assert _best_on_cpu(flags, lambda: {"bfloat16": bfloat16, "float32": 3e9})[0] == best
    assert _best_on_cpu(flags, None)[0] == ("bfloat16" if len(flags) and "avx512_f" not in flags else "float32")


def test_products_are_timed_and_threads_left_as_they_were() -> None:
    threads = torch.get_num_threads()
    assert _measure_products().keys() == {"bfloat16", "float32"}
    assert min(_measure_products().values()) > 1e6
    assert torch.get_num_threads() == threads


def test_what_was_asked_for_is_taken() -> None:
    assert plan_device("float32").precision == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_from_spark_that_torch_does_not_see_is_told() -> None:
    with pytest.raises(EngineError, match="sees no CUDA device"):
        plan_device(gpu="0")


@pytest.mark.parametrize(
    ("gpu", "seen", "visible"),
    [
        ("3", None, "3"),  # nvidia-smi's number, nothing hidden
        ("3", "2,3", "3"),  # the same number where others are hidden: it is not the fourth visible one
        ("1", "4,5", "5"),  # a script that counts what is visible
        ("1", "GPU-a, GPU-b", "GPU-b"),
        ("GPU-b", "GPU-a,GPU-b", "GPU-b"),
        ("MIG-7", None, "MIG-7"),
    ],
)
def test_an_engine_sees_the_gpu_that_spark_gave(gpu: str, seen: str | None, visible: str) -> None:
    assert visible_devices(gpu, seen) == visible


@pytest.mark.parametrize(
    ("gpu", "seen"), [("2", "4,5"), ("0", "1,2"), ("1", "0,2"), ("GPU-c", "GPU-a,GPU-b"), ("0", "")]
)
def test_a_gpu_that_is_hidden_is_told(gpu: str, seen: str) -> None:
    with pytest.raises(EngineError, match="CUDA_VISIBLE_DEVICES"):
        visible_devices(gpu, seen)
