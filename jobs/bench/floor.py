"""The floor under a job's time: its forward pass alone, what its arithmetic costs, how fast this device multiplies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.engine.runner import plan_lanes
from udfs.executor import usable_cores
from udfs.local import LocalEngine
from udfs.model.files import ModelFiles
from udfs.model.prepacking import prepack_layer
from udfs.worker.outputs import Outputs
from udfs.worker.scoring import Prepared

_CPU_SHAPES = ((1024, 384, 1536), (1024, 768, 3072))  # tokens, in, out: those of encoders
_CUDA_SHAPES = ((8192, 8192, 8192), (16384, 1024, 4096), (16384, 4096, 4096))
_ROUND_S = 0.25
_ROUNDS = 4


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of an encoder.

    Args:
        per_token: Of its linear layers, for one token.
        per_token_and_length: Of its attention, for one token and each token of the item.
    """

    per_token: float
    per_token_and_length: float

    def of(self, lengths: np.ndarray) -> float:
        """Operations of items of these lengths, none of them padding."""
        real = lengths.astype(np.float64)
        return float((real * (self.per_token + self.per_token_and_length * real)).sum())


def count_arithmetic(files: ModelFiles) -> Arithmetic:
    """What a model costs: 24·L·H² a token and 4·L·H·S for a length of S, where its feed-forward part is 4·H wide.

    Where it is not, the operations of the layers are counted from the model itself. Windows of attention are not
    regarded: a model with windows does less.
    """
    config = files.config
    width = config.get("hidden_size") or config.get("dim") or config.get("d_model") or 0
    layers = config.get("num_hidden_layers") or config.get("n_layers") or config.get("num_layers") or 0
    inner = config.get("intermediate_size") or config.get("hidden_dim") or config.get("d_ff") or 0
    gated = config.get("model_type") in ("modernbert", "nomic_bert", "gte")
    linear = 24 * layers * width**2 if inner == 4 * width and not gated else _count_linear(files)
    return Arithmetic(linear, 4 * layers * width)


def _count_linear(files: ModelFiles) -> float:
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(files.weights, local_files_only=True))
    layers = ((name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear))
    return float(sum(2 * part.weight.numel() for name, part in layers if "pooler" not in name))


def run_forward(engine: LocalEngine, prepared: list[Prepared]) -> list[Outputs]:
    """The forward pass alone: all windows are there before the first is waited for, so that no lane runs empty."""
    tickets = [engine.submit(window.items) for window in prepared]
    return [engine.collect(ticket) for ticket in tickets]


def measure_peak(device: str, precision: str) -> float:
    """Operations a second of this device's fastest matrix product of an encoder's size, in this precision.

    On a CPU every lane multiplies for itself, as the engine's lanes do. The best of some rounds: other programs on the
    machine only make it slower.
    """
    import torch

    lanes, threads = (1, 1) if device.startswith("cuda") else plan_lanes(on_cuda=False, cores=usable_cores())
    shapes = _CUDA_SHAPES if device.startswith("cuda") else _CPU_SHAPES
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return max(_measure_shape(pool, lanes, shape, device, getattr(torch, precision)) for shape in shapes)


def _measure_shape(pool: ThreadPoolExecutor, lanes: int, shape: tuple[int, int, int], device: str, dtype: Any) -> float:
    import torch

    rows, inside, outside = shape
    states = torch.randn(rows, inside, device=device).to(dtype)
    product = prepack_layer(torch.nn.Linear(inside, outside, bias=False, device=device, dtype=dtype))

    def multiply(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                product(states)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(times: int) -> float:
        began = time.perf_counter()
        list(pool.map(multiply, [times] * lanes))
        return time.perf_counter() - began

    seconds(2)
    times = max(2, int(_ROUND_S / (seconds(4) / 4)))
    return max(2.0 * rows * inside * outside * times * lanes / seconds(times) for _ in range(_ROUNDS))
