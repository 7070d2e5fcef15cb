"""Which device, and which floating-point type it is fastest in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from udfs.errors import EngineError
from udfs.model.prepacking import prepack_layer
from udfs.spec import Precision

_PRODUCT = (256, 512, 2048)  # rows, inputs and outputs of the linear layer that is timed
_CLEARLY = 1.2  # where both are about as fast, an engine that takes another's place shall choose as that did
_PRODUCTS = 7  # of each kind, of which the fastest counts: others may work on the machine


@dataclass(frozen=True)
class DevicePlan:
    """Where the model runs and in what precision.

    Args:
        device: torch's name, `cuda:0` or `cpu`.
        precision: `float32`, `bfloat16` or `float16`.
        reason: Why, in a few words; `gristmill doctor` shows it.
    """

    device: str
    precision: str
    reason: str


def plan_device(precision: Precision = "auto", *, gpu: str | None = None, writes: bool = False) -> DevicePlan:
    """Choose the device and the precision.

    Args:
        precision: What was asked for; `auto` takes bfloat16 on a GPU that multiplies it, float16 on Tensor Cores that
            know no bfloat16, on a CPU with instructions for bfloat16 what is measured to be faster, else float32.
        gpu: Address that Spark gave the task, which this process sees as its only GPU (`visible_devices`); None takes
            the first GPU, if there is one.
        writes: The model writes: each token reads all of its weights, and half as many bytes weigh more than products.

    Raises:
        EngineError: Spark gave a GPU, but torch sees none.
    """
    import torch

    if torch.cuda.is_available():
        device = "cuda:0"
    elif gpu is not None:
        raise EngineError(f"Spark gave this task GPU {gpu}, but torch {torch.__version__} sees no CUDA device")
    else:
        device = "cpu"
    if precision != "auto":
        return DevicePlan(device, precision, "as asked for")
    if device == "cpu":
        return DevicePlan(device, *_best_on_cpu(_cpu_flags(), None if writes else _measure_products))
    return DevicePlan(device, *_best_on_cuda(torch.cuda.get_device_capability(0)))


def _best_on_cuda(capability: tuple[int, int]) -> tuple[str, str]:
    shown = ".".join(map(str, capability))
    if capability >= (8, 0):
        return "bfloat16", f"compute capability {shown} multiplies bfloat16"
    if capability >= (7, 0):
        return "float16", f"compute capability {shown} has Tensor Cores for float16 alone"
    return "float32", f"compute capability {shown} has no Tensor Cores"


def _best_on_cpu(flags: dict[str, Any], measure: Callable[[], dict[str, float]] | None) -> tuple[str, str]:
    """A processor with instructions for bfloat16 may be slower by them: Intel's without AMX take twice as long."""
    name = "AMX" if flags.get("amx_bf16") else "AVX512-BF16" if flags.get("avx512_bf16") else None
    if name is None:
        return "float32", "the processor has neither AMX nor AVX512-BF16"
    if measure is None:
        return "bfloat16", f"the processor has {name}"
    speeds = measure()
    told = " and ".join(f"{precision} {speed / 1e9:.0f}" for precision, speed in speeds.items())
    best = "float32" if speeds["float32"] > _CLEARLY * speeds["bfloat16"] else "bfloat16"
    return best, f"the processor has {name}; a core multiplies {told} GFLOP/s"


def _measure_products() -> dict[str, float]:
    """Operations a second of a core, by precision."""
    import torch

    rows, inputs, outputs = _PRODUCT
    threads, seconds = torch.get_num_threads(), dict[str, float]()
    torch.set_num_threads(1)
    try:
        products = {
            precision: (
                torch.ones(rows, inputs, dtype=dtype),
                prepack_layer(torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)),
            )
            for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
        }
        with torch.inference_mode():
            for _ in range(_PRODUCTS):
                for precision, (states, layer) in products.items():
                    began = time.perf_counter()
                    layer(states)
                    took = time.perf_counter() - began
                    seconds[precision] = min(took, seconds.get(precision, took))
    finally:
        torch.set_num_threads(threads)
    return {precision: 2 * rows * inputs * outputs / took for precision, took in seconds.items()}


def _cpu_flags() -> dict[str, Any]:
    import torch

    return getattr(torch.cpu, "get_capabilities", dict)()
