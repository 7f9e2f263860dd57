"""What every part of ``fastdigin bench truth`` is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.results import Record
from fastdigin_bench.figures import Figure


@dataclass(frozen=True)
class Setup:
    """engine: with the embedded model. classifiers: the embedded ones by name. limit: --jobs."""

    engine: Engine
    classifiers: Mapping[str, Classifier]
    limit: int | None

    def at_most(self, count: int) -> int:
        return count if self.limit is None else min(count, self.limit)


@dataclass(frozen=True)
class Measured:
    """jobs: how many were asked for. failed: how many of them have no result and count nowhere.

    figures: over the others.
    """

    jobs: int
    failed: int
    figures: Sequence[Figure]

    @classmethod
    def of(cls, ids: Sequence[str], done: Sequence[Record], figures: Sequence[Figure]) -> Measured:
        """ids: of all jobs. done: the records of those that did not fail."""
        return cls(len(ids), len(ids) - len(done), figures)

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        figures = [figure.plain() for figure in self.figures]
        return {"jobs": self.jobs, "failed": self.failed, "figures": figures}


Part = Callable[[Setup, Path], Measured]
"""Measures one part, and keeps its pictures and records in the folder."""
