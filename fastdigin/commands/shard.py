"""A share of a command's jobs, for one of several processes that fill one folder."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The ``number``-th of ``count`` processes, from 1: every ``count``-th job is its own."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/4". ArgumentTypeError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise argparse.ArgumentTypeError(
                f"must be K/N, the K-th of N parts, from 1/N to N/N, got {text!r}"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def split(self, number: int, count: int) -> Shard:
        """The ``number``-th of ``count`` parts of this shard."""
        return Shard(self.number + (number - 1) * self.count, self.count * count)

    def of(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that are this process's."""
        return list(ids[self.number - 1 :: self.count])


WHOLE = Shard(1, 1)
"""All jobs in one process."""
