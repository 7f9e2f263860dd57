"""Search: of several candidate jobs for a photo, which one is the best to start from?"""

from __future__ import annotations

from collections.abc import Sequence

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.queue import Search


def best_candidates(
    engine: Engine, groups: Sequence[Sequence[Job]], by: str = "total"
) -> list[Job]:
    """Of each group the job with the smallest plain loss before any optimisation."""
    return Search(groups, by).run(engine, lambda iterations: None)
