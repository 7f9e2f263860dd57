"""Search: of several candidate jobs for a photo, which one is the best to start from?"""

from __future__ import annotations

from collections.abc import Sequence

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job


def best_candidates(engine: Engine, groups: Sequence[Sequence[Job]]) -> list[Job]:
    """Of each group the job with the smallest plain loss before any optimisation.

    All candidates are sampled in the engine's batches. One that fails counts as the worst.
    """
    results = iter(engine.evaluate(job for group in groups for job in group))
    best = []
    for group in groups:
        rows = [next(results).history for _ in group]
        losses = [row[0]["total"] if row else float("inf") for row in rows]
        best.append(group[losses.index(min(losses))])
    return best
