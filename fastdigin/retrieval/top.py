"""The largest of a stream of values."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor

Item = TypeVar("Item")


class Top(Generic[Item]):
    """The ``size`` items with the largest values among all that were added; size is at least 1."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[tuple[float, int, Item]] = []
        self.seen = 0

    def add(self, items: Sequence[Item], values_n: Tensor) -> None:
        """Of two items with equal values the one that came earlier stays."""
        for item, value in zip(items, values_n.tolist(), strict=True):
            entry = (value, -self.seen, item)  # no two are equal, so items are never compared
            self.seen += 1
            if len(self._heap) < self._size:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heappushpop(self._heap, entry)

    def items(self) -> list[tuple[float, Item]]:
        """(value, item), the largest first."""
        return [(value, item) for value, _, item in sorted(self._heap, reverse=True)]
