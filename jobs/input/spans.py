"""Which rows of an Iceberg table make an increment, as its mark keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Span:
        """As `asdict` has told it, also before rows were hashed as the widest type."""
        return cls(**{"widened": False, **told, "key": tuple(told.get("key", ()))})
