"""How much passes between workers and an engine whose model does nothing.

    python -m tests.bench_wire [--clients 4] [--rounds 3]

Each client is a process of its own that sends windows of 8,192 items of 128 tokens and collects 384 numbers for each,
two windows in flight, as a Spark task does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import MINILM
from tests.engine_faults import plant
from udfs.executor import executor_of
from udfs.tasks.registry import make_spec
from udfs.wire.home import EngineId
from udfs.wire.items import Items
from udfs.worker.client import EngineClient

TOKENS, WIDTH, WINDOW = 128, 384, 8192


def send(owner: int, windows: int, barrier: Any) -> None:
    """One client: a window to warm up, then, when all are ready, the others."""
    spec = make_spec(task="feature-extraction", model=MINILM, max_batch_tokens=32768)
    rng = np.random.default_rng(0)
    items = Items(rng.integers(1, 30_000, WINDOW * TOKENS).astype(np.int32), np.arange(WINDOW + 1) * TOKENS)
    with EngineClient(EngineId(spec, None, executor_of(owner))) as client:
        client.collect(client.submit(items))
        barrier.wait()
        in_flight: deque[Any] = deque()
        for _ in range(windows):
            in_flight.append(client.submit(items))
            if len(in_flight) == 2:
                assert client.collect(in_flight.popleft()).values.shape == (WINDOW, WIDTH)
        while in_flight:
            client.collect(in_flight.popleft())
        barrier.wait()


def main() -> None:
    """Print rows/s of each round and their median."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--windows", type=int, default=12, help="of each client in a round")
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as site:
        sys.path.append(plant(Path(site), width=WIDTH))  # the clients have this path, and by them the engine
        spawn = multiprocessing.get_context("spawn")
        rates = []
        for _ in range(asked.rounds):
            barrier = spawn.Barrier(asked.clients + 1)
            clients = [
                spawn.Process(target=send, args=(os.getpid(), asked.windows, barrier)) for _ in range(asked.clients)
            ]
            for client in clients:
                client.start()
            barrier.wait()
            began = time.perf_counter()
            barrier.wait()
            rates.append(asked.clients * asked.windows * WINDOW / (time.perf_counter() - began))
            for client in clients:
                client.join()
            print(f"{rates[-1]:,.0f} rows/s")
    print(
        f"median {statistics.median(rates):,.0f} rows/s of {TOKENS} tokens and {WIDTH} numbers, {asked.clients} clients"
    )


if __name__ == "__main__":
    main()
