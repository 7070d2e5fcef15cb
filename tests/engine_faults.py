"""Faults for engines under test. The product has no switch for them.

`plant` writes a `sitecustomize.py`; with its directory on PYTHONPATH, Python reads it as an engine's process starts,
and the model there dies, hangs, runs out of memory or does nothing at all, as the test asks.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
_SITE = """
import sys
if "udfs.engine" in sys.orig_argv:
    sys.path.insert(0, {root!r})
    from tests.engine_faults import install
    install(**{options!r})
"""

WAYS: dict[str, Callable[[], Any]] = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: faulthandler._sigsegv(),  # type: ignore[attr-defined]
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(1000),
    "hang with Python's lock": lambda: ctypes.PyDLL(None).sleep(1000),
    "device is lost": lambda: _raise(RuntimeError("CUDA error: device-side assert triggered")),
    "raise": lambda: _raise(IndexError("index out of range in self")),
}


def plant(folder: Path, **options: Any) -> str:
    """Write the fault that `install` is to make; returns what has to be on PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE.format(root=str(ROOT), options=options))
    return str(folder)


def install(
    *,
    starts: str | None = None,
    at_start: str | None = None,
    poison: int | None = None,
    way: str = "exit",
    cap: int | None = None,
    shrinks_to: int | None = None,
    width: int | None = None,
    on_gpu: bool = False,
    constants: dict[str, float] | None = None,
) -> None:
    """Change the engine of this process.

    Args:
        starts: A file; each start writes a line.
        at_start: A way to end instead of loading the model.
        poison: The token whose micro-batch, or step of a decoder, ends in `way`; -1 for every micro-batch.
        cap: Tokens of a micro-batch, padding included, above which memory is out.
        shrinks_to: The cap falls with each micro-batch, down to this.
        width: Of the outputs of a model that does nothing at all.
        on_gpu: Pretend that the GPU that Spark gave is there.
        constants: Those of the engine's modules, as `keeper._IDLE_S`.
    """
    from udfs.engine import assembly, keeper, model, runner
    from udfs.engine.cutting import batch_tokens
    from udfs.generation.decoding import Decoder

    modules = {"keeper": keeper, "runner": runner}
    for name, value in (constants or {}).items():
        module, constant = modules[name.split(".")[0]], name.split(".")[1]
        assert hasattr(module, constant)
        setattr(module, constant, value)
    if starts:
        with Path(starts).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if at_start:
        model.Model.__init__ = lambda *_, **__: WAYS[at_start]()  # type: ignore[method-assign]
    if on_gpu:
        _pretend_gpu(model)
    if width:
        _do_nothing(model.Model, width)
        return
    run, measure = model.Model.run, assembly.measure_budget
    caps, ready = [cap] if cap else [], []

    def measure_first(*args: Any, **options: Any) -> Any:
        try:
            return measure(*args, **options)
        finally:
            ready.append(True)

    assembly.measure_budget = measure_first

    def faulty(self: Any, items: Any, indices: np.ndarray) -> Any:
        if ready and (poison == -1 or (poison is not None and poison in items.take(indices).ids)):
            WAYS[way]()
        tokens = batch_tokens(items.lengths[indices], self.pad_multiple)
        if caps:
            caps.append(max(shrinks_to or 0, caps[-1] - 10) if shrinks_to else caps[-1])
            if tokens > caps[-1]:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(self, items, indices)

    model.Model.run = faulty  # type: ignore[method-assign]
    step = Decoder.step

    def faulty_step(self: Decoder) -> Any:
        if any(poison in sequence.prompt for sequence in self.sequences):
            WAYS[way]()
        return step(self)

    if poison is not None:
        Decoder.step = faulty_step  # type: ignore[method-assign]


def _pretend_gpu(model: Any) -> None:
    plan_device, load = model.plan_device, model.Model.__init__
    model.plan_device = lambda precision, gpu: plan_device(precision)

    def init(self: Any, spec: Any, *, gpu: str | None = None) -> None:
        load(self, spec, gpu=gpu)
        self.name = self.name.replace(":cpu/", f":cuda:{gpu}/")

    model.Model.__init__ = init


def _do_nothing(cls: Any, width: int) -> None:
    from udfs.engine.batch import BatchMaker
    from udfs.wire.items import Items

    class Probes:
        def fill(self, tokens: int, *, length: int) -> Items:
            return Items(np.full(tokens, 3, dtype=np.int32), np.append(np.arange(0, tokens, length), tokens))

    def init(self: Any, spec: Any, *, gpu: str | None = None) -> None:
        self.device, self.pad_multiple, self.max_tokens, self.width = "cpu", 8, 512, width
        self.name, self.per_token = f"{platform.node()}:{os.getpid()}:cpu/float32/padded", False
        self._make_batch, self.probes = BatchMaker("cpu", packed=False, pad_multiple=8), Probes()

    def run(self: Any, items: Any, indices: np.ndarray) -> Any:
        batch = self._make_batch(items, indices)
        return np.zeros((len(indices), width), dtype=np.float32), batch.ids.shape[1]

    cls.__init__, cls.run = init, run


def _raise(error: Exception) -> None:
    raise error


def read_lines(path: Path) -> list[str]:
    """Lines of a file that may not be there."""
    return path.read_text().splitlines() if path.exists() else []
