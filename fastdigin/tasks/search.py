"""Search: of several candidate jobs for a photo, which one is the best to start from?"""

from __future__ import annotations

from collections.abc import Sequence

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job


def best_candidates(
    engine: Engine, groups: Sequence[Sequence[Job]], by: str = "total"
) -> list[Job]:
    """Of each group the job with the smallest plain loss before any optimisation.

    by: the loss that decides, as the history names it. All candidates are sampled in the engine's
    batches. One that fails counts as the worst; one that is alone is not sampled.
    """
    results = iter(engine.evaluate(job for group in groups if len(group) > 1 for job in group))
    best = []
    for group in groups:
        if len(group) == 1:
            best.append(group[0])
            continue
        rows = [next(results).history for _ in group]
        losses = [row[0][by] if row else float("inf") for row in rows]
        best.append(group[losses.index(min(losses))])
    return best
