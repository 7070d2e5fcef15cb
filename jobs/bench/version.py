"""The process of one checkout that `jobs.bench.versions` compares: writes all texts each time that it is told a line.

It is run by its path, with the packages of that checkout, and takes of them what has long been there.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from udfs.local import LocalEngine
from udfs.model.files import open_model_of
from udfs.tasks.registry import make_task

_WARM = 8  # texts that are not counted


def main() -> None:
    spec, texts = pickle.loads(Path(sys.argv[1]).read_bytes())
    spec = replace(spec, dedupe=False, overflow="truncate", chunk_overlap=0)
    items = make_task(spec, open_model_of(spec)).tokenize(texts).items
    items = items.take(np.random.default_rng(0).permutation(len(items)))  # the order in which rows arrive
    with LocalEngine(spec) as engine:
        engine.forward(items.take(np.arange(min(_WARM, len(items)))))
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            began, worked = time.perf_counter(), time.process_time()
            written = engine.forward(items).written or []
            answers = [answer.ids.tolist() if answer else [] for answer in written]
            took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - worked}
            print(json.dumps({**took, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
