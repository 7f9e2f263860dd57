"""Who is alive in a run on Ray, and how far the images are that have no record yet."""

from __future__ import annotations

import time
from collections import Counter

import ray

EVERY = 1.0
"""Seconds between two beats of a worker."""


@ray.remote(num_cpus=0)
class Beats:
    """An actor that hears every worker and answers the driver."""

    def __init__(self):
        self._shares: dict[str, float] = {}
        self._begun: Counter[str] = Counter()
        self._last = time.monotonic()

    def begin(self, block: str) -> int:
        """How often the block has been begun, this time included."""
        self._begun[block] += 1
        self._last = time.monotonic()
        return self._begun[block]

    def beat(self, worker: str, share: float) -> None:
        """share: of the images that the worker has begun and not finished, in images."""
        self._shares[worker] = share
        self._last = time.monotonic()

    def read(self) -> tuple[float, float]:
        """Images' worth of unfinished work, and the seconds since anybody was heard."""
        return sum(self._shares.values()), time.monotonic() - self._last
