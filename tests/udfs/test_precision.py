from __future__ import annotations

import pytest
import torch

from udfs.errors import EngineError
from udfs.precision import _best_on_cpu, _best_on_cuda, plan_device


@pytest.mark.parametrize(
    ("capability", "best"),
    [((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_a_gpu_gets_what_it_multiplies(capability: tuple[int, int], best: str) -> None:
    assert _best_on_cuda(capability)[0] == best


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ({}, "float32"),
        ({"avx512_f": True}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_cpu_gets_what_it_multiplies(flags: dict[str, bool], best: str) -> None:
    assert _best_on_cpu(flags)[0] == best


def test_what_was_asked_for_is_taken() -> None:
    assert plan_device("float32").precision == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_from_spark_that_torch_does_not_see_is_told() -> None:
    with pytest.raises(EngineError, match="sees no CUDA device"):
        plan_device(gpu="0")
