"""Items that have killed engines: written down as they die, so that no other engine has to."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import numpy as np

from udfs.executor import Executor
from udfs.wire.home import Home
from udfs.wire.items import Items

PROVEN = 2  # an engine that died without a word while an item ran by itself may have been killed by somebody else


def remember_fault(home: Home, executor: Executor, digest: str, *, deaths: int) -> None:
    """An engine has died while this item ran by itself; the caller holds the home's lock.

    Args:
        home: The engine's directory. What is remembered lies beside it and outlives it, as long as the executor does.
        executor: Whose engine it was.
        digest: The item's.
        deaths: 1, or `PROVEN` where the engine's last words show that the item was to blame.
    """
    known = _read(home)
    known[digest] = known.get(digest, 0) + deaths
    shelf, name = _place(home)
    shelf.write(name, {"executor": asdict(executor), "deaths": known})


def find_known_faults(home: Home, items: Items) -> np.ndarray:
    """Indices of the items that are known to kill."""
    proven = {digest for digest, deaths in _read(home).items() if deaths >= PROVEN}
    lengths = [int(digest.split("-")[0]) for digest in proven]
    alike = np.flatnonzero(np.isin(items.lengths, lengths)) if proven else np.empty(0, dtype=np.int64)
    return np.array([i for i in alike.tolist() if items.digest(i) in proven], dtype=np.int64)


def forget_faults(home: Home) -> None:
    """The executor has ended, and with it all that was remembered of this engine's items."""
    shelf, name = _place(home)
    (shelf / name).unlink(missing_ok=True)


def _read(home: Home) -> dict[str, int]:
    shelf, name = _place(home)
    with contextlib.suppress(ValueError, OSError):
        return (shelf.read(name) or {"deaths": {}})["deaths"]
    return {}


def _place(home: Home) -> tuple[Home, str]:
    return Home(home.path.parent), f"{home.path.name}.faults"


# What is wrong with an item, as it crosses the wire.
FINE, TOO_LARGE, FAULTY, REFUSED = 0, 1, 2, 3
