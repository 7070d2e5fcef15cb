"""Which rows of an Iceberg table make an increment, as its mark keeps it."""

from __future__ import annotations

from dataclasses import dataclass

SHARES = 1 << 20


@dataclass(frozen=True)
class Span:
    """The rows of an Iceberg table that make an increment.

    Args:
        start: The snapshot after which they were appended; None for all that the table held with `end`.
        end: The snapshot by which they were.
        low, high: The share of them that it is, by the hash of their key: from the first up to the second of SHARES.
        key: Columns whose hash that is.
        widened: They are hashed as the widest type that theirs may become, so that the hash stays what it is.
    """

    start: int | None
    end: int
    low: int = 0
    high: int = SHARES
    key: tuple[str, ...] = ()
    widened: bool = True
