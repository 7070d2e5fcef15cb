"""What options that differ from row to row cost: `python -m tests.bench_options [--rows 192] [--rounds 3]`.

The same prompts with one kind of options for all of them, and with all kinds mixed, in turn: tokens a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import pyarrow as pa

from jobs.bench.corpus import docstrings
from udfs.local import LocalEngine
from udfs.tasks.registry import make_spec
from udfs.worker.scoring import score_with

MODEL = "models/smollm2-135m-instruct"
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.7, "top_p": 0.9, "seed": 7},
    "stop": {"stop": ["\n\n"]},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "bias": {"logit_bias": {"11": -5.0}},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "json": {"response_format": "json_object"},
}


def main() -> None:
    """Print each kind's tokens a second, those of all kinds one after the other, and those of the mixture."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--rows", type=int, default=192)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    prompts = docstrings(given.rows, first_line=True)
    spec = make_spec(
        task="text-generation", model=MODEL, template="{{ text }}", options_from="options", max_new_tokens=32
    )
    kinds = list(KINDS)
    ways = {kind: [kind] * len(prompts) for kind in kinds}
    ways["mixed"] = [kinds[number % len(kinds)] for number in range(len(prompts))]
    windows = {way: _window(prompts, of_row) for way, of_row in ways.items()}
    took: dict[str, list[float]] = {way: [] for way in ways}
    written: dict[str, int] = {}
    with LocalEngine(spec) as engine:
        for number in range(given.rounds + 1):
            for way, window in windows.items():
                began = time.perf_counter()
                (result,) = score_with(engine, [window], spec)
                seconds = time.perf_counter() - began
                written[way] = sum(row["usage"]["output_tokens"] for row in result.to_pylist())
                if number:  # the first is a warm-up
                    took[way].append(seconds)
                print(f"round {number}, {way}: {written[way]} tokens, {seconds:.1f} s", flush=True)
    seconds_of = {way: statistics.median(seconds) for way, seconds in took.items()}
    alone = sum(written[kind] for kind in kinds) / sum(seconds_of[kind] for kind in kinds)
    for way, seconds in seconds_of.items():
        print(f"{way:10} {written[way] / seconds:7.0f} tokens/s")
    print(
        f"mixed has {written['mixed'] / seconds_of['mixed'] / alone:.2f} times the tokens/s of its kinds by themselves"
    )


def _window(prompts: list[str], kinds: list[str]) -> pa.Array:
    options = [json.dumps(KINDS[kind]) for kind in kinds]
    return pa.StructArray.from_arrays([pa.array(prompts), pa.array(options)], ["text", "options"])


if __name__ == "__main__":
    main()
