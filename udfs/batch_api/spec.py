"""What crosses to the executors of a job whose rows are requests: which models there are, by the names of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from udfs.batch_api.requests import Dialect
from udfs.spec import ScoreSpec


@dataclass(frozen=True)
class Served:
    """A model that requests name.

    Args:
        name: What they call it.
        write: How it writes; None where it cannot.
        embed: How it embeds; None where it cannot.
        problems: Why it cannot, by `write` and `embed`.
    """

    name: str
    write: ScoreSpec[Any] | None
    embed: ScoreSpec[Any] | None
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BatchSpec:
    """What is asked of which models by rows that are requests.

    Args:
        dialect: Whose requests they are.
        models: All that they may name.
        window_rows: Rows that are answered together.
        deadline: In seconds since 1970; requests that are not answered by then expire.
    """

    dialect: Dialect
    models: tuple[Served, ...]
    window_rows: int = 2048
    deadline: float | None = None

    def find(self, name: str) -> Served | None:
        """The model of a name; requests without one, where there is but one, are that one's."""
        return next((model for model in self.models if model.name == name), None)

    def specs(self) -> list[ScoreSpec[Any]]:
        """One for each engine."""
        return [spec for model in self.models for spec in (model.write, model.embed) if spec is not None]
