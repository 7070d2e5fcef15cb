"""What is committed: increments with the sums over their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.input.kinds import column
from jobs.input.spans import Span
from udfs.errors import UNTRIED
from udfs.results import USAGE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

RETRIES = 1_000_000  # increments of retries count from here on, so that they are in nobody's way


@dataclass(frozen=True)
class Committed:
    """Sums over the rows that an output holds.

    Args:
        rows, succeeded, failed: Rows, all of them and by outcome.
        failed_by_code: Failed rows by error code.
        scored_rows: Rows that went through the model; the others failed before or repeat such a row.
        input_tokens, output_tokens, padded_tokens, cached_tokens: Sums of `usage`.
        engines: Rows scored by each engine; their number is the number of model loads.
        tokenizers: Rows by the library that tokenized their task's last texts; of rows that workers wrote.
    """

    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    failed_by_code: dict[str, int] = field(default_factory=dict)
    scored_rows: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    padded_tokens: int = 0
    cached_tokens: int = 0
    engines: dict[str, int] = field(default_factory=dict)
    tokenizers: dict[str, int] = field(default_factory=dict)

    @property
    def untried(self) -> int:
        """Failed rows that nobody has tried: a deadline came first, or they were cancelled."""
        return sum(self.failed_by_code.get(code, 0) for code in UNTRIED)


def add_up(parts: Iterable[Committed]) -> Committed:
    """The sums of sums."""
    total: dict[str, Any] = {
        name: Counter[str]() if isinstance(zero, dict) else zero for name, zero in vars(Committed()).items()
    }
    for part in parts:
        for name, value in vars(part).items():
            if isinstance(value, dict):
                total[name].update(value)
            else:
                total[name] += value
    plain: dict[str, Any] = {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in total.items()}
    return Committed(**plain)


@dataclass(frozen=True)
class Increment:
    """What is known of a committed increment; its mark keeps it (see `jobs.output.marks`).

    Args:
        number: Of Spark's batch; those of retries count from RETRIES on.
        run_id: Who committed it.
        committed_at: When.
        seconds: What it took, from its first look at the input on.
        counts: Sums over its rows. Those of a retry include the rows that failed again, which are in no output.
        input_files, input_bytes: What it was made of; null where the source does not tell.
        input_bound: Of a table's stream: the bytes that it was cut to; it has as many if more was left.
        input_offset: Where its files end in the source's log; null where there is none.
        input_span: What it was made of in an Iceberg table; null of other inputs.
        deleted: Rows of a merged table that went, since the input has them no more; by their keys.
        ignored_files: Files of it that could not be read.
        gone_files: Files of it that were there as it was planned, and not as it was scored.
        repeated_files: Files of it with the rows of another one that was read before, and which that is.
        malformed_files: Files of it with records that do not fit, and how many.
        told: Warnings of what its files add, lack or hide.
        mended: Of a retry: rows that succeeded now, by the code that they had failed with.
        requests: Of a provider's batches: requests that were `made` and, identical ones once, `sent`, with their
            estimated `made_tokens` and `sent_tokens`; the `batches` that were run, and requests that are `unsent`.
    """

    number: int
    run_id: str
    committed_at: str
    seconds: float
    counts: Committed
    input_files: int | None = None
    input_bytes: int | None = None
    input_offset: int | None = None
    input_bound: int | None = None
    input_span: Span | None = None
    ignored_files: tuple[str, ...] = ()
    gone_files: tuple[str, ...] = ()
    repeated_files: dict[str, str] = field(default_factory=dict)
    malformed_files: dict[str, int] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    mended: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    deleted: int = 0

    @property
    def is_retry(self) -> bool:
        return self.number >= RETRIES

    @property
    def began_ms(self) -> float:
        """When it was first looked at, in milliseconds since 1970."""
        return 1000 * (datetime.fromisoformat(self.committed_at).timestamp() - self.seconds)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Increment:
        files = {name: tuple(value.get(name, ())) for name in ("ignored_files", "gone_files", "told")}
        span = value.get("input_span")
        if span is None and value.get("input_snapshot") is not None:  # as 0.1 wrote it at first
            span = {"start": None, "end": value["input_snapshot"]}
        made = Span.from_json(span) if span else None
        own = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        return cls(**{**own, "counts": Committed(**value["counts"]), "input_span": made, **files})


def name_of(number: int) -> str:
    """The directory of an increment."""
    return f"increment={number:06d}"


def count_outcomes(results: DataFrame, name: str) -> Committed:
    """Sum up the rows of an output.

    Args:
        results: What Spark reads from an output directory.
        name: The result column.
    """
    from pyspark.sql import functions as F

    result, tokens = column(name), USAGE
    usage = result["usage"]
    groups = results.groupBy("outcome", result["error"]["code"].alias("code"), result["engine"].alias("engine")).agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if(usage["input_tokens"] > 0).alias("scored_rows"),
        *(F.sum(usage[t]).alias(t) for t in tokens),
    )
    return sum_groups(groups.collect())


def sum_groups(found: Iterable[Mapping[str, Any]]) -> Committed:
    """Sum up groups of rows, each with its outcome, error code, engine, and sums."""
    found = list(found)
    outcomes, codes, engines, tokenizers = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in found:
        outcomes[row["outcome"]] += row["rows"]
        if row["code"] is not None:
            codes[row["code"]] += row["rows"]
        if row["engine"] is not None:
            engines[row["engine"]] += row["scored_rows"]
        if "tokenizer" in row and row["tokenizer"] is not None:
            tokenizers[row["tokenizer"]] += row["rows"]
    return Committed(
        rows=outcomes.total(),
        succeeded=outcomes["succeeded"],
        failed=outcomes["failed"],
        failed_by_code=dict(sorted(codes.items())),
        scored_rows=sum(row["scored_rows"] for row in found),
        **{token: sum(row[token] or 0 for row in found) for token in USAGE},
        engines=dict(sorted(engines.items())),
        tokenizers=dict(sorted(tokenizers.items())),
    )
