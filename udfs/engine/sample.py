"""Some of the items that an engine has run, each as likely to be among them as any other."""

from __future__ import annotations

import numpy as np

from udfs.wire.items import Items


class Sample:
    """A reservoir. Not safe for threads.

    Args:
        size: Items that are kept.

    Source: Vitter, Algorithm R.
    """

    def __init__(self, size: int = 256) -> None:
        self._size, self._seen, self._random = size, 0, np.random.default_rng()
        self._kept: list[Items] = []

    def add(self, items: Items) -> None:
        """Look at items that are about to run."""
        places = self._random.integers(0, np.arange(self._seen, self._seen + len(items)) + 1)
        if (free := self._size - self._seen) > 0:
            places[:free] = np.arange(self._seen, self._seen + min(free, len(items)))
        for index in np.flatnonzero(places < self._size).tolist():
            one = items.take(np.array([index]))
            if places[index] == len(self._kept):
                self._kept.append(one)
            else:
                self._kept[places[index]] = one
        self._seen += len(items)

    def draw(self) -> list[Items]:
        """What is kept, in an order without meaning; the sample begins anew."""
        kept, self._kept, self._seen = self._kept, [], 0
        return [kept[place] for place in self._random.permutation(len(kept))]
