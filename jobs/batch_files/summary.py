"""What became of a batch as a whole, in the shape of the service's own object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.batch_files.lines import read_laid_out, work_of
from jobs.folder import Folder
from jobs.settings import BATCH_FORMATS, Settings
from udfs.batch_api.requests import make_id, read_object

_WINDOW_S = 24 * 3600


@dataclass
class Counts:
    """What became of requests.

    Args:
        by_kind: `succeeded`, `failed` or `expired`, and how many.
        input_tokens, cached_tokens, output_tokens: Of those that succeeded.
    """

    by_kind: Counter[str]
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def summarize(
    settings: Settings, counts: Counts, *, started_at: float, ended_at: float, errors: str | None
) -> dict[str, Any]:
    """A `batch`, or a `message_batch`.

    Args:
        settings: The job, as it was asked for.
        counts: What became of its requests.
        started_at, ended_at: In seconds since 1970.
        errors: The file of failures; None where there is none.
    """
    if settings.output.format == "anthropic-batch":
        return _message_batch(settings, counts, started_at, ended_at)
    kinds, total = counts.by_kind, sum(counts.by_kind.values())
    is_late = kinds["expired"] > 0
    begun, ended = int(started_at), int(ended_at)
    return {
        "id": make_id("batch_"),
        "object": "batch",
        "endpoint": _find_endpoint(settings),
        "model": next(iter(settings.models)) if len(settings.models) == 1 else None,
        "errors": None,
        "input_file_id": settings.input.path or settings.input.table or "query",
        "completion_window": "24h",
        "status": "expired" if is_late else "completed",
        "output_file_id": settings.output.path,
        "error_file_id": errors if total > kinds["succeeded"] else None,
        "created_at": begun,
        "in_progress_at": begun,
        "expires_at": begun + _WINDOW_S,
        "finalizing_at": ended,
        "completed_at": None if is_late else ended,
        "failed_at": None,
        "expired_at": ended if is_late else None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {
            "total": total,
            "completed": kinds["succeeded"],
            "failed": total - kinds["succeeded"],
        },
        "usage": {
            "input_tokens": counts.input_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.input_tokens + counts.output_tokens,
        },
        "metadata": None,
    }


def _find_endpoint(settings: Settings) -> str:
    """The url of the first request that has one."""
    if settings.input.format in BATCH_FORMATS:
        for line in read_laid_out(Folder(work_of(settings))):
            told, _ = read_object(line["request"])
            if isinstance(told.get("url"), str):
                return told["url"]
    return "/v1/chat/completions"


def _message_batch(settings: Settings, counts: Counts, started_at: float, ended_at: float) -> dict[str, Any]:
    def show(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

    kinds = counts.by_kind
    return {
        "id": make_id("msgbatch_"),
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {
            "processing": 0,
            "succeeded": kinds["succeeded"],
            "errored": kinds["failed"],
            "canceled": 0,
            "expired": kinds["expired"],
        },
        "created_at": show(started_at),
        "expires_at": show(started_at + _WINDOW_S),
        "ended_at": show(ended_at),
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": settings.output.path,
    }
