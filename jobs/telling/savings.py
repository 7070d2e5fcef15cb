"""What scoring in batches has saved, out of what was committed and measured; nothing is told that was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.telling.rows import Lengths
from jobs.telling.totals import Totals

_FIXED = 32  # rows of a batch in the usual loop
_ONE_ITEM = ("feature-extraction", "text-classification", "token-classification")  # of a row that is not in chunks


def tell_savings(
    totals: Totals, report: dict[str, Any], lengths: Lengths, job: dict[str, Any]
) -> list[tuple[str, str]]:
    """Lines about what a batch has saved.

    Args:
        totals: Sums over the output.
        report: Of the last run that measured it.
        lengths: Of its rows.
        job: What its job file says of the job.
    """
    counts = totals.counts
    lines = tell_compared(told) if (told := report.get("compared")) else []
    if repeated := max(0, counts.succeeded - counts.scored_rows):
        share = repeated / max(1, counts.succeeded)
        lines.append(("deduplication: rows that were not scored again", f"{repeated:,} ({share:.1%})"))
    if counts.cached_tokens:
        share = counts.cached_tokens / max(1, counts.input_tokens)
        lines.append(("prefixes: prompt tokens that were computed once", f"{counts.cached_tokens:,} ({share:.1%})"))
    if job.get("task") in _ONE_ITEM and job.get("overflow") != "chunk" and len(lengths.tokens) >= _FIXED:
        fixed, own = pad_fixed(lengths.tokens), share_of_padding(lengths.tokens, lengths.padded)
        lines.append(("packing: padding, of the tokens computed", f"{own:.1%}"))
        lines.append((f"  in batches of {_FIXED} rows as they come", f"{fixed:.1%}"))
    return lines


def tell_compared(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines about what the same model would have needed one text at a time; see `jobs.increments.comparing`."""
    lines = [
        (
            "one text at a time",
            f"{told['times']:.1f} times as long ({told['times_low']:.1f} to {told['times_high']:.1f})",
        ),
        ("  measured with", f"{told['texts']:,} texts in {told['seconds']:.1f} s; 95 % t interval"),
    ]
    if told.get("alone_usd") is not None:
        usd, low, high = (tell_usd(told[name]) for name in ("alone_usd", "alone_usd_low", "alone_usd_high"))
        lines.append(("  would have cost", f"{usd} USD ({low} to {high})"))
    return lines


def tell_usd(usd: float) -> str:
    """Money, with as many digits as it needs."""
    return f"{usd:,.2f}" if usd >= 1 else f"{usd:.4f}"


def pad_fixed(tokens: np.ndarray) -> float:
    """The share of padding in batches of a fixed number of rows, in their order, each padded to its longest."""
    whole = tokens[: len(tokens) // _FIXED * _FIXED].reshape(-1, _FIXED)
    return share_of_padding(whole.sum(axis=1), whole.max(axis=1) * _FIXED)


def share_of_padding(tokens: np.ndarray, padded: np.ndarray) -> float:
    """Of the tokens that are computed."""
    return max(0.0, 1 - float(tokens.sum()) / float(padded.sum())) if padded.sum() else 0.0
